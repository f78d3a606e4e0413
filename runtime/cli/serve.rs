//! `gritlm serve`.

use super::args::{Global, Serve};
use super::output::Out;
use super::{BY_INTERRUPT, note, opened};
use crate::error::Result;
use gritlm::Engine;
use gritlm::schedule::Limits;
use gritlm_serve::{Server, Settings};
use std::path::Path;

pub(super) fn run(args: Serve, global: &Global, out: &mut Out) -> Result<()> {
    let options = global.options();
    let settings = Settings::default()
        .name(args.model_name.unwrap_or_else(|| name(&global.model)))
        .api_keys(args.api_key)
        .write_keys(args.write_key)
        .cors(args.cors_origin)
        .allow_hosts(args.allow_host)
        .max_body_bytes(args.max_body_bytes)
        .max_bytes_under_way(args.max_bytes_under_way)
        .max_inputs(args.max_inputs)
        .connections(args.max_connections)
        .patience(args.patience)
        .grace(args.grace)
        .limits(
            Limits::default()
                .batch_tokens(args.max_batch_tokens.unwrap_or(options.batch_tokens))
                .queue_requests(args.max_queue)
                .queue_tokens(args.max_queue_tokens),
        )
        .store(args.store)
        .web(args.web)
        .store_read_only(args.store_read_only)
        .log(|line| note(format!("error: {line}")));
    let server = Server::bind(&args.host, args.port, settings)?;
    out.line(format!("http://{}", server.address()))?;
    out.finish()?;
    let model = global.model.clone();
    let load = move || {
        let engine = Engine::open(&model, &options)?;
        opened(&engine);
        Ok(engine)
    };
    Ok(server.run(load, stopped())?)
}

/// Returns the last part of a folder's path, or a model id as it is.
fn name(model: &str) -> String {
    match Path::new(model).canonicalize() {
        Ok(folder) if model != "demo" => {
            folder.file_name().map_or(model.into(), |name| name.to_string_lossy().into_owned())
        }
        _ => model.into(),
    }
}

/// Completes when the process is asked to end. A second signal ends the process at once.
async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // Without a handler the signal ends the process, as by default.
        let (Ok(mut end), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return std::future::pending().await;
        };
        tokio::select! { _ = end.recv() => {}, _ = interrupt.recv() => {} }
        tokio::spawn(async move {
            let code = tokio::select! {
                _ = end.recv() => super::BY_TERMINATE,
                _ = interrupt.recv() => BY_INTERRUPT,
            };
            std::process::exit(code.into());
        });
    }
    #[cfg(not(unix))]
    {
        if tokio::signal::ctrl_c().await.is_err() {
            return std::future::pending().await;
        }
        tokio::spawn(async {
            let _ = tokio::signal::ctrl_c().await;
            std::process::exit(BY_INTERRUPT.into());
        });
    }
    note("note: finishing what is under way");
}
