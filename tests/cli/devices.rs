//! Devices: their list, equal answers on each, profiles, a full memory, and tuned tiles.

use super::{keys, numbers, objects, run};
use assert_cmd::Command;
use pollster::block_on;
use serde_json::Value;
use std::fs;

#[test]
fn devices_lists_the_cpu() {
    let found = objects(&run(&["devices", "--format", "json"], "").ok());
    for device in &found {
        assert_eq!(keys(device), ["available", "description", "device"]);
    }
    let cpu = found.iter().find(|d| d["device"] == "cpu").unwrap();
    assert_eq!(cpu["available"], true);
    let text = run(&["devices"], "").ok();
    assert_eq!(text.lines().count(), found.len());
    assert!(text.starts_with("cpu    yes"), "{text}");
}

/// Every adapter is listed under a name that `--device` takes, and answers as the CPU does.
#[test]
fn every_device_answers_the_same() {
    let ask = ["generate", "--prompt", "Describe the package knights.", "--max-tokens", "12"];
    let said = run(&[&ask[..], &["--device", "cpu"]].concat(), "").ok();
    let listed = objects(&run(&["devices", "--format", "json"], "").ok());
    for device in gritlm::devices() {
        let found = listed.iter().find(|d| d["device"] == device.device).unwrap();
        assert_eq!(found["available"], device.available);
        if device.available {
            let again = run(&[&ask[..], &["--device", &device.device]].concat(), "").ok();
            assert_eq!(again, said, "{}", device.device);
        }
    }
}

/// RADV lists a GPU that is not there, and does not open it: named by `devices`, refused by name, passed
/// over where another adapter fits.
#[test]
#[cfg(target_os = "linux")]
fn an_adapter_that_does_not_open_is_named() {
    let folder = std::path::Path::new("/usr/share/vulkan/icd.d");
    let [radv, lavapipe] = ["radeon", "lvp"].map(|d| folder.join(format!("{d}_icd.x86_64.json")));
    if !radv.exists() || !lavapipe.exists() {
        assert!(std::env::var_os("GRITLM_EXPECT_ADAPTERS").is_none(), "{}", radv.display());
        let test = "cli::devices::an_adapter_that_does_not_open_is_named";
        return crate::support::say(&format!("SKIPPED {test}: no mesa-vulkan-drivers"));
    }
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gritlm"));
        let files = std::env::join_paths([&radv, &lavapipe]).unwrap();
        command.args(args).env("VK_DRIVER_FILES", files).env_remove("VK_ADD_DRIVER_FILES");
        let output = command.env("RADV_FORCE_FAMILY", "navi21").output().unwrap();
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), stdout, stderr)
    };
    let (code, listed, problem) = run(&["devices", "--format", "json"]);
    assert_eq!(code, Some(0), "{problem}");
    let listed = objects(&listed);
    let null = listed.iter().find(|d| d["device"].to_string().contains("NAVI21"));
    let null = null.unwrap_or_else(|| panic!("{listed:?}"));
    assert_eq!(null["available"], false);
    let said = null["description"].as_str().unwrap();
    assert!(said.contains("cannot be used: the driver does not open it: "), "{said}");
    let (code, _, problem) = run(&["embed", "a text", "--device", "wgpu:navi21"]);
    assert_eq!(code, Some(1), "{problem}");
    let last = problem.lines().last().unwrap();
    assert!(last.contains("NAVI21") && last.contains("cannot be opened: "), "{problem}");
    let (code, _, problem) = run(&["embed", "a text", "--device", "wgpu"]);
    assert!(code == Some(0) && problem.contains("llvmpipe"), "{problem}");
}

#[test]
fn a_profile_is_a_table_on_stderr() {
    let args = ["embed", "a text", "--profile", "--device"];
    let on_cpu = run(&[&args[..], &["cpu"]].concat(), "");
    assert!(on_cpu.stderr.contains("--profile times the ops of a GPU"), "{}", on_cpu.stderr);
    let Some(device) = gritlm::devices().into_iter().find(|d| d.available && d.device != "cpu")
    else {
        return crate::support::say(
            "SKIPPED cli::devices::a_profile_is_a_table_on_stderr: no adapter",
        );
    };
    let ran = run(&[&args[..], &[&device.device]].concat(), "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in ["GFLOP/s", "attention", "gate_up", "share", "all"] {
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
}

/// Where the device has no memory left, one line says so. Held down by the address space, which
/// software GPUs take their memory from.
#[test]
#[cfg(target_os = "linux")]
fn no_device_memory_is_one_line() {
    let Some(adapter) =
        block_on(gritlm_shaders::adapters()).into_iter().find(|a| a.cpu && a.backend == "vulkan")
    else {
        return crate::support::say(
            "SKIPPED cli::devices::no_device_memory_is_one_line: no lavapipe",
        );
    };
    let program = env!("CARGO_BIN_EXE_gritlm");
    let script = format!(
        "ulimit -v 1600000; exec {program} generate --prompt x --kv-tokens 250000 --device 'wgpu:{}'",
        adapter.label()
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .env("RAYON_NUM_THREADS", "2")
        .env("LP_NUM_THREADS", "2")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("out of device memory"), "{stderr}");
    assert!(stderr.contains("--kv-tokens") && !stderr.contains("panicked"), "{stderr}");
}

/// `--tune` measures once and keeps what it found; a damaged file counts as none.
#[test]
fn tuned_tiles_are_kept() {
    let Some(adapter) =
        block_on(gritlm_shaders::adapters()).into_iter().find(|a| a.lacks.is_none())
    else {
        return crate::support::say("SKIPPED cli::devices::tuned_tiles_are_kept: no adapter");
    };
    let cache = tempfile::tempdir().unwrap();
    let device = format!("wgpu:{}", adapter.label());
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
        command.args(["embed", "a text", "--format", "json", "--device", &device]).args(more);
        let output = command.env("GRITLM_CACHE", cache.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        numbers(&object["embedding"])
    };
    let untuned = run(&[]);
    assert!(!cache.path().join("tiles").exists());
    let tuned = run(&["--tune"]);
    let files: Vec<_> = fs::read_dir(cache.path().join("tiles")).unwrap().collect();
    let [Ok(file)] = &files[..] else { panic!("expected one file, found {files:?}") };
    let kept: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    assert!(kept["matmul"].is_u64() && kept["lanes"].is_u64(), "{kept}");
    assert_eq!(run(&[]), tuned);
    fs::write(file.path(), "{\"matmul\": 7}").unwrap();
    assert_eq!(run(&[]), untuned);
    for text in [tuned, untuned] {
        crate::support::close("tuned", &text, &run(&[]), 1e-5);
    }
}
