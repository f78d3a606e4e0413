//! Downloads that were cut are resumed, by the same run or the next, and not from wrong bytes.

use super::{FILES, Home, MODEL, Reply, Server, WEIGHTS, odd};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Half of the weights: where downloads are cut.
fn half() -> usize {
    usize::try_from(fs::metadata(odd().join(WEIGHTS)).unwrap().len() / 2).unwrap()
}

/// A home into which the server has failed to bring the weights: their first half is there.
fn interrupted() -> Home {
    let home = Home::new();
    let server = Server::start(&odd(), {
        let cut = AtomicBool::new(false);
        move |asked| match asked.file() == WEIGHTS && asked.is_body() {
            true if cut.swap(true, Ordering::SeqCst) => Reply::Status(404),
            true => Reply::Cut(half()),
            false => Reply::File,
        }
    });
    home.run(&server.url, MODEL).fails(&["404", WEIGHTS]);
    assert!(!home.snapshot(WEIGHTS).exists() && !home.repo().join("refs/main").exists());
    home
}

#[test]
fn goes_on_after_a_cut() {
    let home = Home::new();
    let cut = AtomicBool::new(false);
    let server = Server::start(&odd(), move |asked| {
        if asked.file() != WEIGHTS || !asked.is_body() || cut.swap(true, Ordering::SeqCst) {
            return Reply::File;
        }
        // Longer than a server that says nothing is waited for.
        std::thread::sleep(Duration::from_millis(2200));
        Reply::Cut(half())
    });
    home.run(&server.url, MODEL).works();
    home.holds(&odd(), &FILES);
    assert_eq!(server.ranges(WEIGHTS), ["bytes=0-".to_owned(), format!("bytes={}-", half())]);
}

#[test]
fn the_next_run_resumes() {
    let (home, server) = (interrupted(), Server::start(&odd(), |_| Reply::File));
    home.run(&server.url, MODEL).works();
    home.holds(&odd(), &FILES);
    assert_eq!(server.ranges(WEIGHTS), [format!("bytes={}-", half())]);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let (home, server) = (interrupted(), Server::start(&odd(), |_| Reply::Whole));
    home.run(&server.url, MODEL).works();
    home.holds(&odd(), &FILES);
}

#[test]
fn a_part_may_be_whole_or_too_long() {
    for (more, ranges) in [("", 0), ("x", 1)] {
        let (home, server) = (interrupted(), Server::start(&odd(), |_| Reply::File));
        let whole = fs::read(odd().join(WEIGHTS)).unwrap();
        fs::write(home.part(), [&whole, more.as_bytes()].concat()).unwrap();
        home.run(&server.url, MODEL).works();
        home.holds(&odd(), &FILES);
        assert_eq!(server.ranges(WEIGHTS).len(), ranges);
    }
}

#[test]
fn a_blob_of_the_wrong_length_is_replaced() {
    let (home, server) = (interrupted(), Server::start(&odd(), |_| Reply::File));
    fs::write(home.part().with_extension(""), "short").unwrap();
    home.run(&server.url, MODEL).works();
    home.holds(&odd(), &FILES);
}

#[test]
fn two_processes_do_not_write_one_part() {
    let (home, server) = (interrupted(), Server::start(&odd(), |_| Reply::File));
    let part = fs::File::open(home.part()).unwrap();
    part.lock().unwrap();
    home.run(&server.url, MODEL).fails(&[".part", "another process"]);
    part.unlock().unwrap();
    home.run(&server.url, MODEL).works();
    home.holds(&odd(), &FILES);
}

#[test]
fn a_short_file_is_no_file() {
    let home = Home::new();
    let server = Server::start(&odd(), |asked| match asked.file() == WEIGHTS {
        true => Reply::Claim(9),
        false => Reply::File,
    });
    home.run(&server.url, MODEL).fails(&[&server.url, WEIGHTS]);
    assert!(!home.snapshot(WEIGHTS).exists() && !home.repo().join("refs/main").exists());
    let server = Server::start(&odd(), |_| Reply::File);
    home.run(&server.url, MODEL).works();
    home.holds(&odd(), &FILES);
}
