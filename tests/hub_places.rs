//! Where models lie: the variables that Python's `huggingface_hub` hears, older names included, and
//! `~` in them and in `--model`.

use crate::hub::{Home, MODEL, Reply, Server, odd};
use std::path::Path;

/// A server that has the model.
fn hub() -> Server {
    Server::start(&odd(), |_| Reply::File)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_cache_is_where_the_environment_says() {
    let server = hub();
    let cases: [(&[(&str, &str)], &str); 12] = [
        (&[("HF_HUB_CACHE", "{}/a")], "a"),
        (&[("HUGGINGFACE_HUB_CACHE", "{}/b")], "b"),
        (&[("HF_HUB_CACHE", "{}/c"), ("HUGGINGFACE_HUB_CACHE", "{}/not")], "c"),
        (&[("HF_HUB_CACHE", " "), ("HUGGINGFACE_HUB_CACHE", "{}/d")], "d"),
        (&[("HF_HUB_CACHE", "~/e")], "e"),
        (&[("HUGGINGFACE_HUB_CACHE", "~/f/g")], "f/g"),
        (&[("HF_HOME", "~/h")], "h/hub"),
        (&[("HF_HOME", "~")], "hub"),
        (&[("HF_HOME", ""), ("XDG_CACHE_HOME", "~/i")], "i/huggingface/hub"),
        (&[("HF_HOME", "$HOME/j")], "j/hub"),
        (&[("HUGGINGFACE_HUB_CACHE", "${DISK}/k"), ("DISK", "{}")], "k"),
        (&[("HF_HUB_CACHE", "~/$NONE-${NONE}-$")], "$NONE-${NONE}-$"),
    ];
    for (env, place) in cases {
        let (home, folder) = (Home::new(), tempfile::tempdir().unwrap());
        let here = text(folder.path());
        let values = env.iter().map(|(name, value)| (*name, value.replace("{}", here)));
        let values: Vec<(&str, String)> = values.chain([("HOME", here.into())]).collect();
        let env: Vec<(&str, &str)> = values.iter().map(|(n, v)| (*n, v.as_str())).collect();
        home.run_with(&server.url, MODEL, &env).works();
        let repo = folder.path().join(place).join("models--owner--name");
        assert!(repo.join("refs/main").is_file(), "{env:?}");
        assert!(!home.0.path().join("hub").exists(), "{env:?}");
        // It is found there again.
        let offline = [&env[..], &[("HF_HUB_OFFLINE", "1")]].concat();
        home.run_with("http://127.0.0.1:1", MODEL, &offline).works();
    }
}

#[test]
fn either_name_forbids_to_download() {
    let server = hub();
    for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        for yes in ["1", "true", "YES", "on"] {
            let run = Home::new().run_with(&server.url, MODEL, &[(name, yes)]);
            run.fails(&[MODEL, name, "forbids"]);
        }
    }
    assert!(server.log().is_empty());
    // As in Python, the newer name alone counts where it is set.
    for (new, old) in [("0", "1"), ("no", "1"), ("", "0"), ("false", "true")] {
        let env = [("HF_HUB_OFFLINE", new), ("TRANSFORMERS_OFFLINE", old)];
        Home::new().run_with(&server.url, MODEL, &env).works();
    }
}

#[test]
fn the_token_is_where_the_environment_says() {
    let server = hub();
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[("HF_TOKEN", "new"), ("HUGGING_FACE_HUB_TOKEN", "old")], "new"),
        (&[("HUGGING_FACE_HUB_TOKEN", "old")], "old"),
        (&[("HF_TOKEN_PATH", "~/secret")], "in-the-file"),
        (&[("HF_TOKEN_PATH", "$HOME/secret")], "in-the-file"),
        (&[("HF_HUB_CACHE", "~/elsewhere")], "beside-the-cache"),
    ];
    for (env, token) in cases {
        let (home, folder) = (Home::new(), tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("secret"), "in-the-file\n").unwrap();
        std::fs::write(home.0.path().join("token"), "beside-the-cache\n").unwrap();
        let env = [env, &[("HOME", text(folder.path()))]].concat();
        let before = server.log().len();
        home.run_with(&server.url, MODEL, &env).works();
        let expected = format!("Bearer {token}");
        let log = server.log();
        assert!(log[before..].iter().all(|a| a.headers["authorization"] == expected), "{env:?}");
    }
}

#[test]
fn a_folder_may_begin_at_home() {
    let (home, folder) = (Home::new(), tempfile::tempdir().unwrap());
    let model = folder.path().join("models/odd");
    std::fs::create_dir_all(&model).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(odd().join(file), model.join(file)).unwrap();
    }
    let nowhere = "http://127.0.0.1:1";
    let here = [("HOME", text(folder.path()))];
    home.run_with(nowhere, "~/models/odd", &here).works();
    home.run_with(nowhere, "~/models/../models/odd/", &here).works();
    home.run_with(nowhere, "~", &[("HOME", text(&model))]).works();
    home.run_with(nowhere, "~/models/none", &here).fails(&["~/models/none", "no such folder"]);
    let file = "~/models/odd/config.json";
    home.run_with(nowhere, file, &here).fails(&[file, "a file", "folder with config.json"]);
    // From the environment, where no shell has looked at it.
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_gritlm"))
        .arg("inspect")
        .env_clear()
        .env("GRITLM_MODEL", "~/models/odd")
        .env("HOME", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
