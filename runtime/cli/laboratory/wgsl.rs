//! A user's own WGSL files.

use super::{Asked, show_checked, time, wrong};
use crate::args::Global;
use crate::error::{Error, Result};
use crate::output::{Out, Progress};
use gritlm::model::ops::Compute;
use gritlm::{Arithmetic, Device};
use gritlm_bench::laboratory::wgsl::{Half, Own, check, compile, launching, open};

pub(super) fn run(asked: Asked<'_>, global: &Global, out: &mut Out) -> Result<()> {
    let Asked { own, named, how, .. } = asked;
    let name = match &global.device.0[..] {
        [Device::Wgpu(name)] => name.as_str(),
        [Device::Auto] => "",
        _ => {
            let found: Vec<String> = global.device.0.iter().map(Device::to_string).collect();
            return Err(Error::Option {
                option: "--device",
                expected: "wgpu or wgpu:NAME with a WGSL file".into(),
                found: found.join(","),
            });
        }
    };
    let half = match global.compute {
        Some(Arithmetic::Auto) => Half::IfAvailable,
        Some(Arithmetic::In(Compute::F16)) => Half::Required,
        _ => Half::Never,
    };
    let own = own.iter().map(|own| Own::read(&own.stem, &own.path));
    let own = own.collect::<Result<Vec<_>, _>>().map_err(gritlm::Error::from)?;
    let shaders = compile(&own)?;
    let device = open(name, half, own.clone())?;
    let label = Device::Wgpu(device.adapter().label()).to_string();
    if out.json() {
        let stems: Vec<&str> = own.iter().map(|own| own.stem).collect();
        out.object(&serde_json::json!({ "files": stems, "shaders": shaders, "device": label }))?;
    } else {
        out.line(format!("valid in {shaders} shaders, forms with subgroups counted"))?;
    }
    let mut progress = Progress::new("cases", 0);
    let checked = check(&device, |done, all| Ok(progress.of(done, all)?))?;
    drop(progress);
    show_checked(&checked, std::iter::empty(), &label, out)?;
    wrong(&checked, own.iter().map(|own| own.path.as_path()), out)?;
    let named = launching(&device, named)?;
    time((&open(name, half, Vec::new())?, &device), &label, &named, how, out)
}
