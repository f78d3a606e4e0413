//! Servers, indexes and names that the downloader refuses, each in one line.

use super::{
    COMMIT, FILES, Home, INDEX, MODEL, Reply, Server, WEIGHTS, odd, read, sharded, write_index,
};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn says_what_the_server_said() {
    type Make = fn() -> Reply;
    let cases: [(Make, &[&str]); 7] = [
        (|| Reply::Status(404), &["404", "revision"]),
        (|| Reply::Status(401), &["401", "HF_TOKEN"]),
        (|| Reply::Status(403), &["403", "HF_TOKEN"]),
        (|| Reply::Status(500), &["500", "later"]),
        (|| Reply::Shifted, &["expected the bytes from 0", "HF_ENDPOINT"]),
        (|| Reply::Page, &["web page", "HF_ENDPOINT"]),
        (|| Reply::Moved("/round/and/round".into()), &["redirected"]),
    ];
    for file in ["config.json", WEIGHTS] {
        for (make, words) in cases {
            let home = Home::new();
            let server = Server::start(&odd(), move |asked| match asked.file() {
                asked if asked == file => make(),
                "round" => make(),
                _ => Reply::File,
            });
            let run = home.run(&server.url, MODEL);
            run.fails(words);
            run.fails(&[MODEL, &server.url, file, "folder"]);
            drop(server);
            let server = Server::start(&odd(), |_| Reply::File);
            home.run(&server.url, MODEL).works();
            home.holds(&odd(), &FILES);
        }
    }
    let (home, server) = (Home::new(), Server::start(Path::new("nowhere"), |_| Reply::File));
    home.run(&server.url, MODEL).fails(&["Entry not found"]);
}

#[test]
fn an_index_names_files_of_the_model_only() {
    for shard in ["../../../token", "two words.safetensors", "query?.safetensors"] {
        let (home, folder) = (Home::new(), sharded());
        let map = BTreeMap::from([("lm_head.weight".to_owned(), shard.to_owned())]);
        write_index(folder.path(), &map);
        let server = Server::start(folder.path(), |_| Reply::File);
        home.run(&server.url, MODEL).fails(&[INDEX, shard]);
        let asked: Vec<_> = server.log().iter().map(|asked| asked.file().to_owned()).collect();
        assert_eq!(asked.last().unwrap(), INDEX);
    }
}

#[test]
fn names_that_leave_the_cache_are_refused() {
    // Not this program's server: one whose etag is a path.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read(&stream).unwrap();
        let head = "HTTP/1.1 206 Said\r\nConnection: close\r\nContent-Range: bytes 0-0/1\r\n";
        let names = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"../../../../evil\"\r\n");
        write!(stream, "{head}{names}Content-Length: 1\r\n\r\nx").unwrap();
    });
    let home = Home::new();
    home.run(&url, MODEL).fails(&["ETag", &url]);
    thread.join().unwrap();
}

#[test]
fn a_dead_server_is_soon_given_up() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let (home, start) = (Home::new(), Instant::now());
    home.run(&url, MODEL).fails(&[MODEL, &url, "refused", "network"]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    for wrong in ["nonsense", "http:"] {
        home.run(wrong, MODEL).fails(&[MODEL, wrong, "HF_ENDPOINT"]);
    }
}
