//! The WGSL backend: every variant is valid, its parameters are the shader's, and the adapters that
//! are here compute the case table.

use crate::support::say;
use gritlm_shaders::shader::{Kind, Variant, shaders, variants};
use gritlm_shaders::{Adapter, Options, Wgpu, adapters};
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess, TypeInner};
use std::collections::HashMap;

/// Opens every adapter that can be used.
pub(crate) fn open_all() -> Vec<Wgpu> {
    let open =
        |a: &Adapter| Wgpu::open(&Options { name: a.label(), ..Options::default() }).unwrap();
    adapters().iter().filter(|a| a.lacks.is_none()).map(open).collect()
}

/// Says which adapters a test covered; without any, that it was skipped.
pub(crate) fn covered(test: &str, gpus: &[Wgpu]) {
    if gpus.is_empty() {
        say(&format!("SKIPPED {test}: no wgpu adapter here (Debian: mesa-vulkan-drivers)"));
    }
}

#[test]
fn adapters_are_listed() {
    for a in adapters() {
        let lacks = a.lacks.as_ref().map_or(String::new(), |l| format!(", cannot be used: {l}"));
        say(&format!("adapter: {}, {}, subgroups {:?}{lacks}", a.label(), a.driver, a.subgroups));
    }
}

fn parse(text: &str, name: &str) -> naga::Module {
    naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(text)))
}

fn validator(subgroups: bool) -> Validator {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all());
    validator
}

/// naga accepts every variant, with subgroups and without, and once its constants have values.
#[test]
fn every_variant_is_valid() {
    let all = variants();
    for subgroups in [false, true] {
        let mut modules = HashMap::new();
        for shader in shaders() {
            let module = parse(&shader.source(subgroups), shader.name);
            let info = validator(subgroups)
                .validate(&module)
                .unwrap_or_else(|e| panic!("{}: {e:?}", shader.name));
            modules.insert(shader.name, (module, info));
        }
        for Variant { shader, constants } in &all {
            let (module, info) = &modules[shader];
            let constants = constants.iter().map(|(n, v)| (n.to_string(), *v)).collect();
            let entry = Some((naga::ShaderStage::Compute, "main"));
            let (fixed, _) = process_overrides(module, info, entry, &constants)
                .unwrap_or_else(|e| panic!("{shader} {constants:?}: {e:?}"));
            validator(subgroups)
                .validate(&fixed)
                .unwrap_or_else(|e| panic!("{shader} {constants:?}: {e:?}"));
        }
    }
    say(&format!("shaders: {} in {} variants", shaders().len(), all.len()));
}

/// What Rust sends is what the shader reads: the uniform's fields, offsets and size; and the kinds
/// of its bindings are those of the table.
#[test]
fn params_and_bindings_agree() {
    let layouts: HashMap<_, _> = gritlm_shaders::params().iter().map(|l| (l.name, *l)).collect();
    for shader in shaders() {
        let module = parse(&shader.source(true), shader.name);
        let mut found = vec![None; shader.bindings.len()];
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = &variable.binding else { continue };
            assert_eq!(binding.group, 0);
            found[binding.binding as usize] = Some(match variable.space {
                AddressSpace::Uniform => Kind::Params,
                AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => {
                    Kind::Write
                }
                _ => Kind::Read,
            });
            if variable.space == AddressSpace::Uniform {
                let ty = &module.types[variable.ty];
                let layout = layouts[ty.name.as_deref().unwrap()];
                let TypeInner::Struct { members, span } = &ty.inner else { panic!("{ty:?}") };
                let fields: Vec<(&str, usize)> = (members.iter())
                    .map(|m| (m.name.as_deref().unwrap(), m.offset as usize))
                    .collect();
                assert_eq!(fields, layout.fields, "{}: {}", shader.name, layout.name);
                assert_eq!(*span as usize, layout.size, "{}: {}", shader.name, layout.name);
            }
        }
        let expected: Vec<_> = shader.bindings.iter().copied().map(Some).collect();
        assert_eq!(found, expected, "{}", shader.name);
    }
}
