//! The CUDA kernels without a GPU: every source compiles, to no more than the registers there are;
//! compiled ones are kept, and taken from a folder.

use crate::cli::{Ran, objects, run};
use crate::emulator;
use crate::support::say;
use gritlm_kernels::compile::{Nvrtc, cubins};
use gritlm_kernels::params::Layout;
use gritlm_kernels::prebuilt::save;
use gritlm_kernels::source::{HEADERS, Source, all};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// One of each tier, and one between.
const ARCHS: [&str; 3] = ["sm_80", "sm_89", "sm_90a"];

/// A kernel that takes no time to compile.
const SMALL: Source = Source {
    stem: "small",
    file: Cow::Borrowed(
        r#"
        #include "memory.cuh"
        struct Small { Global<float> x; u32 n; u32 unused; };
        extern "C" __global__ void small(Small p) { p.x.set(threadIdx.x % p.n, 1.0f); }
    "#,
    ),
    params: &[Layout { name: "Small", fields: &[("x", 0), ("n", 8), ("unused", 12)], size: 16 }],
    path: None,
};

/// NVRTC; without it the test is skipped, unless `GRITLM_EXPECT_CUDA` says that it must be here.
pub(crate) fn nvrtc(test: &str) -> Option<Nvrtc> {
    match Nvrtc::open() {
        Ok(nvrtc) => Some(nvrtc),
        Err(problem) if std::env::var_os("GRITLM_EXPECT_CUDA").is_none() => {
            say(&format!("SKIPPED {test}: {problem}"));
            None
        }
        Err(problem) => panic!("{problem}"),
    }
}

/// The files of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect()
}

/// A problem in one line that says all `parts`.
#[track_caller]
fn says(problem: impl ToString, parts: &[&str]) {
    let problem = problem.to_string();
    assert!(!problem.contains('\n'), "{problem}");
    for part in parts {
        assert!(problem.contains(part), "expected {part:?} in: {problem}");
    }
}

/// What does not compile is one line that says where and why; so is a struct that is not Rust's.
#[test]
fn what_does_not_compile_is_named() {
    let Some(nvrtc) = nvrtc("kernels::what_does_not_compile_is_named") else { return };
    assert_eq!(nvrtc.compile(&SMALL, "sm_80").unwrap().usage[0].entry, "small");
    let broken = Source { file: "\n__device__ int x = y;\n".into(), params: &[], ..SMALL };
    says(nvrtc.compile(&broken, "sm_80").unwrap_err(), &["small.cu(2)", "sm_80", "\"y\""]);
    let layouts: [(&'static [Layout], _); 3] = [
        (&[Layout { name: "Small", fields: &[("x", 0), ("n", 12)], size: 16 }], "Small::n"),
        (&[Layout { name: "Small", fields: &[], size: 24 }], "Small is"),
        (&[Layout { name: "Small", fields: &[("m", 8)], size: 16 }], "\"m\""),
    ];
    for (params, part) in layouts {
        let other = Source { params, ..SMALL };
        says(nvrtc.compile(&other, "sm_80").unwrap_err(), &["small.cu", part]);
    }
    for arch in ["sm_75", "sm_70", "sm_8x", "hopper", ""] {
        let problem = nvrtc.compile(&SMALL, arch).unwrap_err();
        says(problem, &["architecture", arch, "sm_80, ", "NVRTC"]);
    }
}

/// The best architecture that both the device and the compiler know.
#[test]
fn architectures_follow_the_device() {
    let Some(nvrtc) = nvrtc("kernels::architectures_follow_the_device") else { return };
    let known = [(8, 0, "sm_80"), (8, 6, "sm_86"), (8, 9, "sm_89"), (9, 0, "sm_90a")];
    // Devices that are not made yet run what their major version runs.
    for (major, minor, arch) in known.into_iter().chain([(9, 7, "sm_90")]) {
        assert_eq!(nvrtc.architecture((major, minor)).unwrap(), arch);
    }
    says(nvrtc.architecture((99, 0)).unwrap_err(), &["sm_990", "NVRTC", "newer", "--kernels"]);
    says(nvrtc.architecture((7, 5)).unwrap_err(), &["sm_75", "sm_80"]);
}

/// A second start reads what the first has kept; whatever is not that is compiled again and
/// replaced, and where nothing can be kept, it is compiled all the same.
#[test]
fn compiled_kernels_are_kept() {
    let Some(nvrtc) = nvrtc("kernels::compiled_kernels_are_kept") else { return };
    let folder = tempfile::tempdir().unwrap();
    let cached = |arch| nvrtc.cubin(&SMALL, arch, Some(folder.path())).unwrap();
    let cubin = cached("sm_80");
    assert_eq!(cubin, nvrtc.compile(&SMALL, "sm_80").unwrap().cubin);
    let [file] = &files(&folder.path().join("kernels"))[..] else { panic!("expected one file") };
    let kept = fs::read(file).unwrap();

    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let age = || File::options().write(true).open(file).unwrap().set_modified(old).unwrap();
    let is_old = || fs::metadata(file).unwrap().modified().unwrap() == old;
    age();
    assert_eq!(cached("sm_80"), cubin);
    assert!(is_old());

    let flipped = |at: usize| {
        let mut bytes = kept.clone();
        bytes[at] ^= 1;
        bytes
    };
    let head = kept.len() - cubin.len();
    let mut wrong: Vec<Vec<u8>> =
        [0, 20, head - 2, head - 1, head, head + 999, kept.len() - 1].map(flipped).into();
    wrong.extend([0, 1, head, kept.len() / 2, kept.len() - 1].map(|len| kept[..len].to_vec()));
    wrong.extend([[&kept[..], b"\0"].concat(), cubin.clone()]);
    // Another's, whole: of another architecture, of another source.
    cached("sm_89");
    let other = Source { file: "extern \"C\" __global__ void k() {}".into(), params: &[], ..SMALL };
    nvrtc.cubin(&other, "sm_80", Some(folder.path())).unwrap();
    let others = files(&folder.path().join("kernels"));
    assert_eq!(others.len(), 3);
    wrong.extend(others.iter().filter(|f| *f != file).map(|f| fs::read(f).unwrap()));
    for bytes in wrong {
        fs::write(file, &bytes).unwrap();
        age();
        assert_eq!(cached("sm_80"), cubin);
        assert!(!is_old());
        assert_eq!(fs::read(file).unwrap(), kept);
    }

    // A folder where the file should be, and a file where the folder should be.
    fs::remove_file(file).unwrap();
    fs::create_dir(file).unwrap();
    assert_eq!(cached("sm_80"), cubin);
    assert_eq!(files(&folder.path().join("kernels")).len(), 3);
    assert_eq!(nvrtc.cubin(&SMALL, "sm_80", Some(&others[0])).unwrap(), cubin);
    assert_eq!(nvrtc.cubin(&SMALL, "sm_80", None).unwrap(), cubin);
}

/// Many that start at the same time: each gets the kernel, and one whole file is left.
#[test]
fn many_may_compile_at_the_same_time() {
    let Some(nvrtc) = nvrtc("kernels::many_may_compile_at_the_same_time") else { return };
    let folder = tempfile::tempdir().unwrap();
    let cubin = nvrtc.compile(&SMALL, "sm_80").unwrap().cubin;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..8 {
                    assert_eq!(nvrtc.cubin(&SMALL, "sm_80", Some(folder.path())).unwrap(), cubin);
                    files(&folder.path().join("kernels")).iter().for_each(|file| {
                        // Already gone, where another has just replaced it.
                        let _ = fs::remove_file(file);
                    });
                }
            });
        }
    });
    nvrtc.cubin(&SMALL, "sm_80", Some(folder.path())).unwrap();
    assert_eq!(files(&folder.path().join("kernels")).len(), 1);
}

/// A folder of compiled kernels: for one's device, of this version, and whole; else one line says
/// what is wrong, and how to make it.
#[test]
fn folders_of_compiled_kernels_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let problem = |capability| cubins(capability, Some(dir), &[]).unwrap_err();
    let manifest = dir.join("kernels.json");
    says(problem((8, 0)), &["kernels.json", "No such file"]);

    let bytes: Vec<_> = all().iter().map(|s| format!("{} compiled", s.stem)).collect();
    let kernels = |arch| all().iter().zip(&bytes).map(move |(s, b)| (s, arch, b.as_bytes()));
    save(dir, &kernels("sm_80").collect::<Vec<_>>()).unwrap();
    for capability in [(8, 0), (8, 6), (8, 9)] {
        let found = cubins(capability, Some(dir), &[]).unwrap();
        assert_eq!(found.len(), all().len());
        assert_eq!(found["rmsnorm"], b"rmsnorm compiled");
    }
    let parts = ["sm_90a or sm_90", "gritlm kernels build --arch sm_90a --output"];
    says(problem((9, 0)), &parts);
    // More is added, and the best is taken.
    let hopper: Vec<_> = all().iter().map(|s| (s, "sm_90a", &b"for Hopper"[..])).collect();
    save(dir, &hopper).unwrap();
    assert_eq!(cubins((9, 0), Some(dir), &[]).unwrap()["rmsnorm"], b"for Hopper");
    assert_eq!(cubins((8, 0), Some(dir), &[]).unwrap()["rmsnorm"], b"rmsnorm compiled");

    let whole = fs::read_to_string(&manifest).unwrap();
    let at = whole.find("rmsnorm.sm_80.cubin\": \"").unwrap() + 24;
    let mut other = whole.clone();
    other.replace_range(at..at + 1, if &whole[at..=at] == "0" { "1" } else { "0" });
    fs::write(&manifest, &other).unwrap();
    says(problem((8, 0)), &["rmsnorm.sm_80.cubin", "this version", "gritlm kernels build"]);
    fs::write(&manifest, whole.replace("rmsnorm.sm_80", "rmsnorm.sm_81")).unwrap();
    says(problem((8, 0)), &["rmsnorm.sm_80.cubin", "gritlm kernels build"]);
    for text in ["", "[1]", "{\"a\":1}", "{", "\u{0}"] {
        fs::write(&manifest, text).unwrap();
        says(problem((8, 0)), &["kernels.json"]);
    }
    fs::write(&manifest, whole).unwrap();
    fs::remove_file(dir.join("search.sm_80.cubin")).unwrap();
    says(problem((8, 0)), &["search.sm_80.cubin", "No such file"]);
}

/// A product's source with this text in place of one of its headers.
pub(crate) fn inlined(source: &Source, header: &str, text: &str) -> Source {
    let mut file = source.file.to_string();
    for name in ["matmul_hopper_few.cuh", "matmul_hopper.cuh", "matmul.cuh"] {
        let (_, own) = HEADERS.iter().find(|(found, _)| *found == name).unwrap();
        let include = format!("#include \"{name}\"");
        assert!(file.contains(&include), "no {name}");
        file = file.replace(&include, if name == header { text } else { own });
        if name == header {
            break;
        }
    }
    Source { file: file.into(), ..source.clone() }
}

/// `gritlm kernels build` compiles every source, with its structs compared with Rust's, for each
/// tier: no register is spilled, and nothing lies on a stack. It says so to programs and to people,
/// and its folder is taken.
#[test]
fn every_source_compiles() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("new/kernels");
    let build = |more: &[&str]| {
        let args = ["kernels", "build", "--output", output.to_str().unwrap()];
        run(&[&args, more].concat(), "")
    };
    let Some(_) = nvrtc("kernels::every_source_compiles") else {
        return build(&[]).fails(1, &["NVRTC", "--kernels DIR"]);
    };
    // One at a time, because three take minutes where other programs run.
    let built = ARCHS.map(|arch| objects(&build(&["--arch", arch, "--format", "json"]).ok()));
    let lines: Vec<_> = built.concat();
    let mut entries = BTreeMap::new();
    for line in &lines {
        let [arch, source, entry] = ["arch", "source", "entry"].map(|k| line[k].as_str().unwrap());
        assert_eq!((&line["spills"], &line["stack"]), (&0.into(), &0.into()), "{line}");
        let registers = line["registers"].as_u64().unwrap();
        assert!(registers > 0 && entry.starts_with(source), "{line}");
        let other = entries.insert((arch, entry), registers);
        assert!(other.is_none(), "an entry point belongs to one source: {line}");
    }
    for arch in ARCHS {
        let registers = entries.iter().filter(|((a, _), _)| *a == arch);
        let registers: Vec<_> = registers.map(|((_, e), n)| format!("{e} {n}")).collect();
        say(&format!("registers, {arch}: {}", registers.join(", ")));
    }
    // Hopper has all that the others have, and its own.
    let of = |arch| entries.keys().filter(move |(a, _)| *a == arch).map(|(_, entry)| *entry);
    let (hopper, both): (Vec<&str>, Vec<&str>) =
        of("sm_90a").partition(|entry| entry.contains("_hopper"));
    assert!(hopper.len() > 30, "{hopper:?}");
    assert!(both.iter().copied().eq(of("sm_80")) && both.iter().copied().eq(of("sm_89")));
    for capability in [(8, 0), (8, 6), (8, 9), (9, 0)] {
        let built = cubins(capability, Some(&output), &[]).unwrap();
        assert_eq!(built.len(), all().len());
        assert!(built.values().all(|cubin| cubin.starts_with(b"\x7fELF")));
    }
    let built = cubins((8, 0), Some(&output), &[]).unwrap();
    assert_eq!(lines[0]["bytes"], built[lines[0]["source"].as_str().unwrap()].len());

    let text = build(&["--arch", "sm_86"]).ok();
    assert_eq!(text.lines().count(), 1 + both.len());
    assert!(text.starts_with("arch "), "{text}");
    assert_eq!(files(&output).len(), 1 + 4 * all().len());
}

/// What `gritlm kernels build` is given is checked before anything is compiled.
#[test]
fn kernels_build_checks_its_options() {
    run(&["kernels", "build"], "").fails(2, &["--output"]);
    if nvrtc("kernels::kernels_build_checks_its_options").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let build = |arch: &str, output: &Path| {
        run(&["kernels", "build", "--arch", arch, "--output", output.to_str().unwrap()], "")
    };
    build("sm_80,sm_1", folder.path()).fails(1, &["sm_1:", "sm_80, "]);
    build("sm_80", &file).fails(1, &["file"]);
    build("sm_80", &file.join("in it")).fails(1, &["file"]);
    assert_eq!(files(folder.path()).len(), 1);
}

/// `--kernels DIR` through the program: what is wrong with the folder is its one line.
#[test]
fn the_program_checks_its_kernels() {
    let Some(emulator) = emulator::install("kernels::the_program_checks_its_kernels") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let refuses = |parts: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_gritlm"));
        command.args(["embed", "a text", "--device", "cuda", "--kernels"]).arg(folder.path());
        command.env("GRITLM_EMULATOR", "1").env("LD_LIBRARY_PATH", emulator.library());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Ran { code, stdout, stderr }.fails(1, parts);
    };
    refuses(&["kernels.json", "No such file"]);
    let kernels: Vec<_> = all().iter().map(|s| (s, "sm_80", &b"not compiled"[..])).collect();
    save(folder.path(), &kernels[1..]).unwrap();
    refuses(&[&format!("{}.sm_80.cubin", all()[0].stem), "gritlm kernels build --arch sm_80"]);
    save(folder.path(), &kernels).unwrap();
    refuses(&["refuses a compiled kernel"]);
    fs::remove_file(folder.path().join("rmsnorm.sm_80.cubin")).unwrap();
    refuses(&["rmsnorm.sm_80.cubin", "No such file"]);
}
