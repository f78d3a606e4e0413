//! logits: the final norm and `lm_head` of the selected rows; see rmsnorm.wgsl and linear.wgsl.

use crate::gpu::Use;
use crate::product::bind;
use crate::{Buffer, Matrix, Wgpu};
use gritlm_model::ops::Logits;

impl Wgpu {
    pub(crate) fn last(
        &self,
        p: Logits,
        rows: &[u32],
        x: &Buffer,
        norm: &Matrix,
        w: &Matrix,
        out: &Buffer,
    ) {
        let count = rows.len() as u32;
        let chosen = match self.gpu.send(bytemuck::cast_slice(rows)) {
            Ok(chosen) => chosen,
            Err(problem) => return self.gpu.fail(problem),
        };
        let Some(h) = self.work(rows.len(), p.dim as usize, Use::Work) else { return };
        self.norm_rows((count, p.dim, p.eps), x, norm, Some(bind(&chosen)), &h);
        self.linear("logits", (count, p.vocab), &h, w, out, false);
    }
}
