//! How texts are cut into chunks.

use super::engine;
use gritlm::Embed;
use gritlm::model::prompt;
use gritlm_rag::Chunking;
use proptest::prelude::*;

/// Texts of words, sentences, paragraphs, rare characters and long runs.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-z]{1,9} ",
        2 => "[A-Za-z]{1,6}[.!?] ",
        1 => Just("\n\n".to_string()),
        1 => "[ \n\t]{1,5}",
        1 => "[äß☃語🦀\u{301}]{1,4}",
        1 => "[0-9a-f]{20,60}",
    ];
    proptest::collection::vec(piece, 0..160).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn chunks_hold_every_byte_and_fit(
        text in texts(), title in "[A-Za-z ]{0,60}", tokens in 32_usize..100, overlap in 0_usize..9,
    ) {
        let how = Chunking { tokens, overlap: overlap.min(tokens / 4) };
        let title = how.title(engine(), &title).unwrap();
        let cuts = how.cut(engine(), &title, &text).unwrap();
        prop_assert_eq!(&cuts, &how.cut(engine(), &title, &text).unwrap());
        prop_assert_eq!(cuts.first().map_or(0, |c| c.bytes.start), 0);
        prop_assert_eq!(cuts.last().map_or(0, |c| c.bytes.end), text.len());
        for pair in cuts.windows(2) {
            prop_assert!(pair[0].bytes.start < pair[1].bytes.start);
            prop_assert!(pair[0].bytes.end < pair[1].bytes.end);
            prop_assert!(pair[1].bytes.start <= pair[0].bytes.end);
            if how.overlap == 0 {
                prop_assert_eq!(pair[1].bytes.start, pair[0].bytes.end);
            } else {
                // As they are in the first chunk: alone, the shared text may be cut otherwise.
                let before = pair[0].bytes.start;
                let shared = pair[1].bytes.start - before..pair[0].bytes.end - before;
                let ends = engine().tokenizer().ends(&text[before..]).unwrap();
                let tokens = |at: usize| ends.iter().take_while(|end| end.0 <= at).count();
                let shared = tokens(shared.end) - tokens(shared.start);
                prop_assert!(shared <= how.overlap, "{}", shared);
            }
        }
        let whole = Embed::default().max_length(tokens);
        for cut in &cuts {
            prop_assert!(cut.encoded.tokens.len() <= tokens);
            let document = prompt::document(&title, &text[cut.bytes.clone()]);
            // As it is embedded elsewhere, with nothing cut off.
            let again = engine().encode_texts(&[document], &whole).unwrap().remove(0);
            prop_assert_eq!(&cut.encoded, &again);
            prop_assert_eq!(again.truncated, 0);
        }
    }
}

#[test]
fn chunks_end_where_paragraphs_or_sentences_do() {
    let how = Chunking { tokens: 64, overlap: 0 };
    let cut = |text: &str| -> Vec<String> {
        let cuts = how.cut(engine(), "", text).unwrap();
        cuts.into_iter().map(|c| text[c.bytes].to_string()).collect()
    };
    let sentence = "The program shows packets. ";
    for chunk in cut(&sentence.repeat(60)) {
        assert!(chunk.ends_with("packets. ") && chunk.len() > 3 * sentence.len(), "{chunk:?}");
    }
    // A paragraph's end counts for more than the later end of a sentence.
    let ends = engine().tokenizer().ends(&sentence.repeat(60)).unwrap();
    let whole = |end: &&(usize, usize)| end.1 < 50 && (end.0 + 1).is_multiple_of(sentence.len());
    let sentences = ends.iter().filter(whole).count();
    let text = format!("{}\n\n{}", sentence.repeat(sentences).trim_end(), sentence.repeat(60));
    assert!(cut(&text)[0].ends_with("packets.\n\n"), "{:?}", cut(&text)[0]);
    // Without any, it ends where the tokens do.
    let long = "x1".repeat(900);
    let chunks = cut(&long);
    assert!(chunks.len() > 1);
    assert_eq!(chunks.concat(), long);
    assert_eq!(how.cut(engine(), "", "").unwrap(), []);
}

#[test]
fn chunk_lengths_are_checked() {
    let check = |tokens, overlap| Chunking { tokens, overlap }.check(2048);
    assert!(check(512, 0).is_ok() && check(32, 8).is_ok() && check(2048, 512).is_ok());
    for (tokens, overlap, option) in [(31, 0, "chunk"), (2049, 0, "chunk"), (64, 17, "overlap")] {
        let error = check(tokens, overlap).unwrap_err().to_string();
        assert!(error.starts_with(option), "{error}");
    }
}
