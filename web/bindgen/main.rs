//! Makes a module that pages import of one that was compiled: `gritlm-web-bindgen MODULE FOLDER`.

use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, folder] = arguments.as_slice() else {
        return Err("usage: gritlm-web-bindgen MODULE FOLDER".into());
    };
    let mut bindgen = Bindgen::new();
    bindgen.input_path(module).out_name("gritlm_web").web(true)?;
    Ok(bindgen.typescript(false).generate(folder)?)
}
