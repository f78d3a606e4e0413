//! The integration tests, one binary. `cargo test --release --workspace` runs them all.

mod adapter; // adapters in PEFT's format: merged at load and on disk, the same bits; bad ones by name
mod api; // the library's behaviour: streaming, chat, budgets, names of architectures
mod api_async; // calls that wait for the device without blocking, on one thread
mod bad_gguf; // damaged GGUF files: one line that names the fault
mod bad_input; // whatever comes in: one line, the right exit code, nothing half written
mod bare; // checkpoints without the causal model's prefix or head; Git LFS pointers
mod bench; // `gritlm bench`: devices, shapes, records, comparison
mod bench_model; // whole models, loading, random weights: all rows there, or said to be missing
mod bench_report; // its table, page, comparison and peers
mod bf16; // products of many rows in bf16 on the CPU
mod browser; // the shaders in a browser's WebGPU, where there is one
mod chat_template; // a checkpoint's own prompts: as transformers renders them, bounded, in use
mod cli; // the program itself: commands, flags, JSON
mod config; // what a config leaves out, says twice or asks for in vain
mod cuda; // the CUDA backend, on an emulator or a GPU
mod devtools; // a browser for the pages
mod emulator; // builds the emulator, and makes sure that it finds what it should
mod examples; // the programs of `examples/`, run
mod faulty; // a backend whose passes fail where a test wants, and whose reads take a while
mod formats; // formats of quantised weights: values, losses, products of several at once
mod fuzz_corpus; // what fuzzers found, and what they began with
mod gguf; // GGUF files: the same bits as the checkpoints that they were made from
mod gguf_file; // a writer of GGUF files
mod gguf_model; // a real quantised model: the tokens, vectors and logits of transformers
mod gguf_tokenizer; // tokenizers of GGUF files: the ids that llama.cpp gives
mod golden; // equal to Hugging Face, on its own outputs
mod gradients; // gradients against differences of their formulas, and on every backend
mod grammar; // answers that follow a JSON schema
mod hostile_documents; // documents made to end or hang their reader: named, the others stored
mod hostile_store; // stores made by somebody else: graphs, numbers, links, pipes, cut files
mod hostile_tokenizer; // tokenizers that multiply a text, by what their steps can do
mod house; // rules that the compiler cannot enforce: no flags in messages of libraries
mod hub; // `--model owner/name`: cache, download, resume, bad servers
mod hub_gguf; // `--model owner/name:FILE.gguf`: one file, or all parts of a split one
mod hub_places; // where models lie: variables of the environment, and `~`
mod index_roots; // what `index` takes for gone and for changed: vanished roots, hidden changes
mod int8; // products with activations in 8 bits
mod interrupt; // Ctrl-C: 130, and what it has interrupted
mod kernels; // CUDA sources: every one compiles, without spills; cache, prebuilt kernels
mod kv_type; // formats of KV pages, numbers of products: what they lose, who has which
mod laboratory; // a user's CUDA kernels beside ours: checked, predicted, the contract on paper
mod laboratory_wgsl; // a user's WGSL files beside ours: checked, timed, the contract on paper
mod mixing; // one batch, many masks; same bits alone and together
mod ops; // the table on every backend
mod pdf; // PDFs with small faults: read as other readers do, or named
mod predicted; // what the compiled CUDA kernels are predicted to reach, beside a record
mod properties; // random input
mod ptx; // the CUDA kernels as PTX, interpreted: the case table, and mistakes planted in the text
mod published; // GritLM-7B's published values, where its weights are at hand
mod python; // the Python package: the library's values, the original's calls, evaluation, fleets
mod quantize; // GGUF files written here, and quantising while loading: the same values
mod quiet; // no "error" on stderr where nothing is wrong
mod rag_answers; // answers through a store on disk: golden files, `gritlm ask`, `bench rag`
mod rag_ask; // answering from documents: six modes against a slow twin, joined caches
mod rag_graph; // approximate search: what it finds, what it follows, damage, the program
mod rag_index; // from files to an index: formats, chunks, runs, search, the program
mod rag_lock; // the store's lock, which a child has inherited
mod rag_store; // the store: round trips, crashes, damage, readers beside a writer
mod ranges; // checkpoints that are read in pieces, as in a browser: the same values
mod schedule; // the scheduler: values under load, fairness, bounds, pages, failures
mod schedule_past; // answers that go on from keys and values that came along: in the batch, preempted
mod schedule_room; // a full KV pool: answers make room for texts, and are none the worse
mod scores; // how likely a given text is: the library, the scheduler, `echo` over HTTP
mod serve; // `gritlm serve`: start, statuses, limits, draining
mod serve_bounds; // texts that cannot fit, refused by their bytes
mod serve_browser; // pages of other origins: what they may send and see, origins that none sends
mod serve_budget; // clients that never read, bodies that never end: one budget of bytes for all
mod serve_chat; // conversations of every form that clients send
mod serve_clients; // clients and evaluation programs that others wrote, unchanged
mod serve_embed; // its embeddings and ranks: values, shapes, refusals
mod serve_faults; // what it survives: vanished, slow and mad clients, failures, an end under load
mod serve_generate; // its answers: equal to the library's, at once or streamed, alone or not
mod serve_host; // names that a server answers to
mod serve_http; // bodies, keys and paths as clients send them; structs from objects only
mod serve_log; // why requests failed, on stderr and not to clients
mod serve_lost; // a device that is lost: one line, not ready, opened again, or an end
mod serve_metrics; // `/metrics` and `/stats`: well-formed, and right to the last count
mod serve_options; // other servers' options: refused by name, or asking for nothing
mod serve_page; // the page at `/`, in a browser
mod serve_prompts; // texts to embed as evaluation programs send them: conversations, whole prompts
mod serve_rag; // `--store`: answers from documents, documents over HTTP, no room, no client
mod serve_spaces; // a completion's text goes on from its prompt's, spaces and all
mod shaders; // the WGSL backend: variants, parameters, limits, errors
mod support; // error measure, reference files
mod synth; // random checkpoints: right, repeatable, whole or not at all
mod terminal; // control characters of documents and models do not reach the terminal
mod text_input; // byte-order marks, UTF-16, blank lines, in everything that is read as text
mod token_ids; // texts as token ids: to the vectors of their texts
mod train_data; // training data: formats, bad lines by number, the engine's ids, the order of batches
mod train_golden; // training: the losses and gradients of PyTorch, however a batch is cut
mod train_lora; // training of adapters: gradients, dropout, runs, what is refused
mod train_run; // `gritlm train`: what a run writes, how it resumes, kills, full disks, refusals
mod vendors; // what GPU vendors' compilers make of the shaders, beside a record; Metal, HLSL
mod web; // the npm package in a browser: the values of the native engine, the page
mod x86; // x86 processors without AVX-512 and without vectors, which QEMU plays
