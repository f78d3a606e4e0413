//! Event files of TensorBoard: records of a protocol buffer each, with checksums.
//!
//! A record is its length as u64, the masked CRC-32C of these 8 bytes, the bytes of an `Event`, and
//! their masked CRC-32C. Of `Event` the fields 1 (time in seconds, f64), 2 (step), 3 (version of
//! the file), 5 (summary) and 7 (session log) are written; a summary has values (1) with a tag (1)
//! and a number (2, f32).

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that is written.
pub(crate) struct Events {
    file: File,
}

impl Events {
    /// Creates a file in `folder` for steps after `step`. TensorBoard drops what earlier files say of
    /// them.
    pub(crate) fn create(folder: &Path, step: usize) -> io::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{}.gritlm.{}", now.as_secs(), std::process::id());
        let mut events = Self { file: File::create(folder.join(name))? };
        let mut version = Vec::new();
        bytes(&mut version, 3, b"brain.Event:2");
        events.write(step, &version)?;
        // SessionLog { status: START }.
        let mut start = Vec::new();
        bytes(&mut start, 7, &[8, 1]);
        events.write(step + 1, &start)?;
        Ok(events)
    }

    /// Writes the numbers of a step.
    pub(crate) fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut one = Vec::new();
            bytes(&mut one, 1, tag.as_bytes());
            one.push(2 << 3 | 5);
            one.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, 1, &one);
        }
        let mut event = Vec::new();
        bytes(&mut event, 5, &summary);
        self.write(step, &event)
    }

    fn write(&mut self, step: usize, fields: &[u8]) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut event = vec![1 << 3 | 1];
        event.extend(now.as_secs_f64().to_le_bytes());
        event.push(2 << 3);
        varint(&mut event, step as u64);
        event.extend(fields);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked(&event).to_le_bytes());
        self.file.write_all(&record)
    }
}

/// Appends a field of bytes.
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Returns the CRC-32C, turned and moved as in TensorFlow's records.
fn masked(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    /// The check value of CRC-32C, of the digits 1 to 9.
    #[test]
    fn checksum() {
        let unmasked = super::masked(b"123456789").wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0xe306_9283);
    }
}
