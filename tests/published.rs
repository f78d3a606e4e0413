//! What the authors and vLLM publish for GritLM-7B, where its weights are at hand:
//! `GRITLM_7B=DIR cargo test --release published`. Skipped by name otherwise.

use crate::support::say;
use gritlm::{Embed, Engine, Options, Prompt, Sampling, dot};

const INSTRUCTION: &str = "Given a scientific paper title, retrieve the paper's abstract";

const QUERIES: [&str; 2] = [
    "Bitcoin: A Peer-to-Peer Electronic Cash System",
    "Generative Representational Instruction Tuning",
];

/// The abstracts of the two papers, as in the example whose cosines the authors publish.
const DOCUMENTS: [&str; 2] = [
    "A purely peer-to-peer version of electronic cash would allow online payments to be sent \
     directly from one party to another without going through a financial institution. Digital \
     signatures provide part of the solution, but the main benefits are lost if a trusted third \
     party is still required to prevent double-spending. We propose a solution to the \
     double-spending problem using a peer-to-peer network. The network timestamps transactions by \
     hashing them into an ongoing chain of hash-based proof-of-work, forming a record that cannot \
     be changed without redoing the proof-of-work. The longest chain not only serves as proof of \
     the sequence of events witnessed, but proof that it came from the largest pool of CPU power. \
     As long as a majority of CPU power is controlled by nodes that are not cooperating to attack \
     the network, they'll generate the longest chain and outpace attackers. The network itself \
     requires minimal structure. Messages are broadcast on a best effort basis, and nodes can \
     leave and rejoin the network at will, accepting the longest proof-of-work chain as proof of \
     what happened while they were gone.",
    "All text-based language problems can be reduced to either generation or embedding. Current \
     models only perform well at one or the other. We introduce generative representational \
     instruction tuning (GRIT) whereby a large language model is trained to handle both generative \
     and embedding tasks by distinguishing between them through instructions. Compared to other \
     open models, our resulting GritLM 7B sets a new state of the art on the Massive Text Embedding \
     Benchmark (MTEB) and outperforms all models up to its size on a range of generative tasks. By \
     scaling up further, GritLM 8X7B outperforms all open generative language models that we tried \
     while still being among the best embedding models. Notably, we find that GRIT matches \
     training on only generative or embedding data, thus we can unify both at no performance loss. \
     Among other benefits, the unification via GRIT speeds up Retrieval-Augmented Generation (RAG) \
     by > 60% for long documents, by no longer requiring separate retrieval and generation models. \
     Models, code, etc. are freely available at https://github.com/ContextualAI/gritlm.",
];

/// cos(query, document); the authors computed in bf16, hence the width of the bound.
const COSINES: [[f32; 2]; 2] = [[0.608, 0.101], [0.120, 0.533]];

#[test]
fn published_values_of_gritlm_7b() {
    let Ok(folder) = std::env::var("GRITLM_7B") else {
        say("SKIPPED published::published_values_of_gritlm_7b: set GRITLM_7B=DIR to run it");
        return;
    };
    let engine = Engine::open(&folder, &Options::default()).unwrap();
    let queries = engine.embed(&QUERIES, &Embed::with_instruction(INSTRUCTION)).unwrap();
    let documents = engine.embed(&DOCUMENTS, &Embed::default()).unwrap();
    for (q, row) in queries.iter().zip(COSINES) {
        for (d, expected) in documents.iter().zip(row) {
            let found = dot(&q.vector, &d.vector);
            assert!((found - expected).abs() <= 0.002, "expected {expected}, found {found}");
        }
    }
    let how = Sampling::greedy().max_tokens(20);
    let answer = engine.generate(&Prompt::user("What is the capital of France?"), &how).unwrap();
    let text: String = answer.map(|piece| piece.unwrap().text).collect();
    assert_eq!(text, "The capital of France is Paris.");
}
