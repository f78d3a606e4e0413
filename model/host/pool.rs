//! Records of the pooled spans.

use crate::ops::{Pooling, PoolingSpan};

/// Returns the records of spans: first row, rows, weighted, normalize. The poolings differ in
/// nothing else.
pub fn records(spans: &[PoolingSpan]) -> Vec<[u32; 4]> {
    let record = |span: &PoolingSpan| {
        let (row, rows, weighted) = match span.pooling {
            Pooling::Mean => (span.row + span.skip, span.rows - span.skip, 0),
            Pooling::WeightedMean => (span.row + span.skip, span.rows - span.skip, 1),
            Pooling::Cls => (span.row, 1, 0),
            Pooling::LastToken => (span.row + span.rows - 1, 1, 0),
        };
        [row, rows, weighted, u32::from(span.normalize)]
    };
    spans.iter().map(record).collect()
}
