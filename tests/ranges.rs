//! Checkpoints whose files are read in pieces, as in a browser: the same values as mapped files, and
//! lines that name what is wrong.

use crate::gguf::answers;
use crate::support::{devices, smollm2, two_devices};
use gritlm::model::weights::{RangeFile, Ranges, Reading};
use gritlm::{Checkpoint, Device, Embed, Engine, Options};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A file in memory that counts what is read of it.
#[derive(Debug, Default)]
struct Remote {
    bytes: Vec<u8>,
    read: AtomicU64,
    longest: AtomicU64,
    /// Reads from this byte on fail.
    broken_at: Option<u64>,
    ranges: Mutex<Vec<Range<u64>>>,
}

impl Ranges for Remote {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Reading<'_> {
        self.read.fetch_add(range.end - range.start, Ordering::Relaxed);
        self.longest.fetch_max(range.end - range.start, Ordering::Relaxed);
        self.ranges.lock().unwrap().push(range.clone());
        let broken = self.broken_at.is_some_and(|at| range.end > at);
        Box::pin(async move {
            match broken {
                true => Err(io::Error::other("the line is dead")),
                false => Ok(self.bytes[range.start as usize..range.end as usize].to_vec()),
            }
        })
    }
}

fn remote(path: &Path) -> Arc<Remote> {
    Arc::new(Remote { bytes: std::fs::read(path).unwrap(), ..Remote::default() })
}

fn file(path: &str, remote: &Arc<Remote>) -> RangeFile {
    RangeFile { path: path.into(), ranges: Arc::clone(remote) as Arc<dyn Ranges> }
}

fn opened(files: &[RangeFile], device: Device) -> gritlm::Result<Engine> {
    opened_with(files, &Options::default().device(device))
}

fn opened_with(files: &[RangeFile], options: &Options) -> gritlm::Result<Engine> {
    pollster::block_on(async {
        let checkpoint = Checkpoint::of_ranges(files).await?;
        Engine::of_checkpoint("far", checkpoint, options).await
    })
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("model/demo")
}

/// The three files of the demo.
fn demo_files() -> (Vec<RangeFile>, Arc<Remote>) {
    let weights = remote(&demo().join("model.safetensors"));
    let small = |name: &str| file(name, &remote(&demo().join(name)));
    let files =
        vec![small("tokenizer.json"), file("model.safetensors", &weights), small("config.json")];
    (files, weights)
}

fn embedded(engine: &Engine) -> Vec<f32> {
    engine.embed(&["a chess interface"], &Embed::default()).unwrap().remove(0).vector
}

#[test]
fn a_checkpoint_has_the_same_values_on_every_device() {
    for (device, _) in devices() {
        let options = Options::default().device(device.clone());
        let near = Engine::open("demo", &options).unwrap();
        let (files, weights) = demo_files();
        let far = opened(&files, device).unwrap();
        assert_eq!(embedded(&far), embedded(&near), "{}", near.device());
        assert_eq!(answers(&far), answers(&near), "{}", near.device());
        // Each byte is read once, but for the length of the header.
        assert_eq!(weights.read.load(Ordering::Relaxed), weights.size() + 8);
    }
}

/// The demo's tensors in two shards, and the index that names them.
fn shards() -> [(&'static str, Vec<u8>); 3] {
    let whole = std::fs::read(demo().join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&whole).unwrap().tensors();
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let (first, second) = all.split_at(all.len() / 2);
    let shard = |tensors: &[(String, TensorView<'_>)]| {
        safetensors::serialize(tensors.iter().map(|(name, view)| (name, view)), None).unwrap()
    };
    let place = |(i, (name, _)): (usize, &(String, TensorView<'_>))| {
        (name.clone(), json!(names[usize::from(i >= first.len())]))
    };
    let map: serde_json::Map<_, _> = all.iter().enumerate().map(place).collect();
    let index = json!({"weight_map": map}).to_string().into_bytes();
    [(names[0], shard(first)), (names[1], shard(second)), ("model.safetensors.index.json", index)]
}

#[test]
fn shards_are_read_where_they_lie() {
    let (mut files, _) = demo_files();
    files.retain(|file| file.path != Path::new("model.safetensors"));
    for (name, bytes) in shards() {
        files.push(file(name, &Arc::new(Remote { bytes, ..Remote::default() })));
    }
    let near = Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap();
    assert_eq!(answers(&opened(&files, Device::Cpu).unwrap()), answers(&near));
    files.retain(|file| !file.path.starts_with("model-00002-of-00002.safetensors"));
    let problem = opened(&files, Device::Cpu).unwrap_err().to_string();
    assert!(problem.contains("expected it in model-00002-of-00002"), "{problem}");
}

/// A quantised model with a tokenizer of 3 MB in its file: of the weights, one matrix is in memory at a
/// time, in pieces.
#[test]
fn a_gguf_file_is_read_in_pieces() {
    let Some(path) = smollm2("ranges::a_gguf_file_is_read_in_pieces") else { return };
    let weights = remote(Path::new(&path));
    for (device, _) in two_devices() {
        let options = Options::default().device(device.clone());
        let near = Engine::open(&path, &options).unwrap();
        let far = opened(&[file("smol.gguf", &weights)], device.clone()).unwrap();
        assert_eq!(answers(&far), answers(&near), "{}", near.device());
        if matches!(device, Device::Wgpu(_)) {
            // Buffers end within heads, whose rows the file has in another order.
            let split = options.matrix_bytes(Some(100_000));
            let far = opened_with(&[file("smol.gguf", &weights)], &split).unwrap();
            assert_eq!(answers(&far), answers(&near), "{} in parts", near.device());
            let longest = weights.longest.swap(0, Ordering::Relaxed);
            assert!(longest <= 8 << 20, "{longest} bytes at once");
        }
        weights.longest.store(0, Ordering::Relaxed);
    }
}

/// What is wrong is said as for a mapped file.
#[test]
fn damage_is_named() {
    let far = |name: &str, bytes: &[u8]| {
        let (mut files, _) = demo_files();
        let at = files.iter().position(|file| file.path == Path::new(name)).unwrap();
        let broken = Remote { bytes: bytes.to_vec(), ..Remote::default() };
        files[at] = file(name, &Arc::new(broken));
        opened(&files, Device::Cpu).unwrap_err().to_string()
    };
    let near = |bytes: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json"] {
            std::fs::copy(demo().join(name), folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let problem = Engine::open(folder.path().to_str().unwrap(), &Options::default());
        let problem = problem.unwrap_err().to_string();
        problem.replace(&format!("{}/", folder.path().display()), "")
    };
    let whole = std::fs::read(demo().join("model.safetensors")).unwrap();
    let mut long = whole.clone();
    long[..8].copy_from_slice(&(whole.len() as u64).to_le_bytes());
    let mut huge = whole.clone();
    huge[7] = 0x7f;
    let mut hole = whole.clone();
    let at = whole.windows(16).position(|w| w == b"\"data_offsets\":[").unwrap() + 16;
    hole[at] = b'8';
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".as_slice();
    for bytes in [
        b"".as_slice(),
        b"1234567",
        pointer,
        &whole[..whole.len() - 1],
        &whole[..4000],
        &long,
        &huge,
    ] {
        assert_eq!(far("model.safetensors", bytes), near(bytes));
    }
    let problem = far("model.safetensors", &hole);
    assert!(problem.starts_with("model.safetensors: not a safetensors file: "), "{problem}");

    let (mut files, weights) = demo_files();
    files.retain(|file| file.path != Path::new("tokenizer.json"));
    let problem = opened(&files, Device::Cpu).unwrap_err().to_string();
    assert!(problem.starts_with("tokenizer.json: "), "{problem}");
    // The line breaks while the tensors are read.
    let (mut files, _) = demo_files();
    let broken_at = Some(weights.size() / 2);
    let broken = Remote { bytes: whole.clone(), broken_at, ..Remote::default() };
    files[1] = file("model.safetensors", &Arc::new(broken));
    let problem = opened(&files, Device::Cpu).unwrap_err().to_string();
    assert_eq!(problem, "model.safetensors: the line is dead");
}

/// A GGUF file whose list of tensors lies behind what is read first, and one that ends before it does.
#[test]
fn the_head_of_a_gguf_file_may_be_long() {
    let Some(path) = smollm2("ranges::the_head_of_a_gguf_file_may_be_long") else { return };
    let whole = std::fs::read(path).unwrap();
    // A text of 6 MB in front of the file's own values.
    let pairs = u64::from_le_bytes(whole[16..24].try_into().unwrap());
    let (key, text) = (b"general.description.long", vec![b'x'; 6 << 20]);
    let mut more = (key.len() as u64).to_le_bytes().to_vec();
    more.extend(key);
    more.extend(8u32.to_le_bytes());
    more.extend((text.len() as u64).to_le_bytes());
    more.extend(text);
    // The elements stay aligned.
    let lack = (32 - more.len() % 32) % 32;
    let at = 8 + key.len() + 4;
    let length = (6 << 20) + lack as u64;
    more[at..at + 8].copy_from_slice(&length.to_le_bytes());
    more.extend(vec![b'x'; lack]);
    let mut bytes = whole[..16].to_vec();
    bytes.extend((pairs + 1).to_le_bytes());
    bytes.extend(&more);
    bytes.extend(&whole[24..]);
    let long = Arc::new(Remote { bytes, ..Remote::default() });
    let far = pollster::block_on(Checkpoint::of_ranges(&[file("long.gguf", &long)])).unwrap();
    assert_eq!(far.config.layers, 30);
    assert!(long.read.load(Ordering::Relaxed) < 20 << 20);

    let cut = Arc::new(Remote { bytes: whole[..1 << 20].to_vec(), ..Remote::default() });
    let far = pollster::block_on(Checkpoint::of_ranges(&[file("cut.gguf", &cut)]));
    let problem = far.err().unwrap().to_string();
    assert!(problem.starts_with("cut.gguf: not a GGUF file that can be read: "), "{problem}");
}
