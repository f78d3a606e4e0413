//! The gradients of the operations, each in a file of its own.

use crate::{
    Batch, Buffer, Matrix, Pages, Routing, Wgpu, adamw, attention_backward, buffers, contrastive,
    cross_entropy, embed_backward, expert_backward, gate_up_backward, linear_add_backward, merge,
    merge_backward, outer, pool_backward, qkv_backward, rmsnorm_backward, route_backward, rows,
};
use gritlm_model::host::params::Layout;
use gritlm_model::ops::{
    AdamW, Attention, Backward, Contrast, Contrastive, CrossEntropy, Expert, GateUp, LinearAdd,
    Merge, Ops, PoolingSpan, Qkv, Result, RmsNorm, Route,
};
use gritlm_model::weights::Tensor;

/// Returns the parameter structs of the shaders of training.
pub(crate) fn params() -> Vec<Layout> {
    vec![
        adamw::Step::LAYOUT,
        attention_backward::AttentionTiles::LAYOUT,
        buffers::Squares::LAYOUT,
        contrastive::Unit::LAYOUT,
        cross_entropy::Loss::LAYOUT,
        expert_backward::ExpertBackward::LAYOUT,
        gate_up_backward::Gated::LAYOUT,
        merge::MergeParams::LAYOUT,
        merge_backward::MergeBackward::LAYOUT,
        outer::Outer::LAYOUT,
        qkv_backward::QkvBackward::LAYOUT,
        rmsnorm_backward::RmsNormBackward::LAYOUT,
        rmsnorm_backward::RmsNormWeight::LAYOUT,
        route_backward::RouteBackward::LAYOUT,
        rows::Rows::LAYOUT,
    ]
}

impl Backward for Wgpu {
    fn parameters(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Matrix> {
        debug_assert_eq!(rows * cols, values.len());
        self.matrix(&[Tensor::from_f32(&[rows, cols], values)])
    }

    async fn read_parameters(&self, w: &Matrix) -> Result<Vec<f32>> {
        buffers::read_parameters(self, w).await
    }

    fn clear(&self, buffer: &mut Buffer, len: usize) {
        buffers::clear(self, buffer, len);
    }

    fn copy(&self, from: &Buffer, len: usize, to: &mut Buffer) {
        buffers::copy(self, from, len, to);
    }

    async fn squares(&self, buffer: &Buffer, len: usize) -> Result<f64> {
        buffers::squares(self, buffer, len).await
    }

    fn attention_kept(
        &self,
        p: Attention,
        q: &Buffer,
        pages: &Pages,
        batch: &Batch,
        out: &mut Buffer,
        lse: &mut Buffer,
    ) {
        attention_backward::attention_kept(self, p, q, pages, batch, out, lse);
    }

    fn gate_up_kept(&self, p: GateUp, h: &Buffer, w: &Matrix, out: &mut Buffer, kept: &mut Buffer) {
        gate_up_backward::gate_up_kept(self, p, h, w, out, kept);
    }

    fn expert_gate_up_kept(
        &self,
        p: Expert,
        h: &Buffer,
        w: &Matrix,
        routing: &Routing,
        out: &mut Buffer,
        kept: &mut Buffer,
    ) {
        expert_backward::expert_gate_up_kept(self, p, h, w, routing, out, kept);
    }

    fn embed_backward(&self, dim: u32, batch: &Batch, dx: &Buffer, dtable: &mut Buffer) {
        embed_backward::embed_backward(self, dim, batch, dx, dtable);
    }

    fn rmsnorm_backward(
        &self,
        p: RmsNorm,
        x: &Buffer,
        weight: &Matrix,
        dh: &Buffer,
        dx: &mut Buffer,
        dweight: Option<&mut Buffer>,
    ) {
        rmsnorm_backward::rmsnorm_backward(self, p, x, weight, dh, dx, dweight);
    }

    fn qkv_backward(
        &self,
        p: Qkv,
        h: &Buffer,
        w: &Matrix,
        batch: &Batch,
        dqkv: [&Buffer; 3],
        dh: &mut Buffer,
        dw: Option<&mut Buffer>,
    ) {
        qkv_backward::qkv_backward(self, p, h, w, batch, dqkv, dh, dw);
    }

    fn attention_backward(
        &self,
        p: Attention,
        q: &Buffer,
        pages: &Pages,
        batch: &Batch,
        out: &Buffer,
        lse: &Buffer,
        dout: &Buffer,
        dqkv: [&mut Buffer; 3],
    ) {
        let gradients = dqkv.map(|d| &*d);
        attention_backward::attention_backward(self, p, q, pages, batch, out, lse, dout, gradients);
    }

    fn linear_add_backward(
        &self,
        p: LinearAdd,
        a: &Buffer,
        w: &Matrix,
        dx: &Buffer,
        da: &mut Buffer,
        dw: Option<&mut Buffer>,
    ) {
        linear_add_backward::linear_add_backward(self, p, a, w, dx, da, dw);
    }

    fn gate_up_backward(
        &self,
        p: GateUp,
        h: &Buffer,
        w: &Matrix,
        kept: &mut Buffer,
        dout: &Buffer,
        dh: &mut Buffer,
        dw: Option<&mut Buffer>,
    ) {
        gate_up_backward::gate_up_backward(self, p, h, w, kept, dout, dh, dw);
    }

    fn expert_down_add_backward(
        &self,
        p: Expert,
        a: &Buffer,
        w: &Matrix,
        routing: &Routing,
        dx: &Buffer,
        da: &mut Buffer,
        dweights: &mut Buffer,
        dw: Option<&mut Buffer>,
    ) {
        expert_backward::expert_down_add_backward(self, p, a, w, routing, dx, da, dweights, dw);
    }

    fn route_backward(
        &self,
        p: Route,
        h: &Buffer,
        w: &Matrix,
        routing: &Routing,
        dweights: &Buffer,
        balance: &[f32],
        dh: &mut Buffer,
        dw: Option<&mut Buffer>,
    ) {
        route_backward::route_backward(self, p, h, w, routing, dweights, balance, dh, dw);
    }

    fn expert_gate_up_backward(
        &self,
        p: Expert,
        h: &Buffer,
        w: &Matrix,
        routing: &Routing,
        kept: &mut Buffer,
        dout: &Buffer,
        dh: &mut Buffer,
        dw: Option<&mut Buffer>,
    ) {
        expert_backward::expert_gate_up_backward(self, p, h, w, routing, kept, dout, dh, dw);
    }

    fn pool_backward(&self, dim: u32, spans: &[PoolingSpan], dout: &Buffer, dh: &mut Buffer) {
        pool_backward::pool_backward(self, dim, spans, dout, dh);
    }

    fn cross_entropy(
        &self,
        p: CrossEntropy,
        rows: &[u32],
        targets: &[u32],
        scales: &[f32],
        h: &Buffer,
        w: &Matrix,
        losses: &mut Buffer,
        dh: &mut Buffer,
        dw: Option<&mut Buffer>,
    ) {
        cross_entropy::cross_entropy(self, p, rows, targets, scales, h, w, losses, dh, dw);
    }

    fn contrastive(
        &self,
        p: Contrastive,
        wanted: &[Contrast],
        queries: &Buffer,
        passages: &Buffer,
        losses: &mut Buffer,
        dqueries: &mut Buffer,
        dpassages: &mut Buffer,
    ) {
        contrastive::contrastive(self, p, wanted, queries, passages, losses, dqueries, dpassages);
    }

    fn merge(
        &self,
        p: Merge,
        w: &Matrix,
        ba: Option<[&Matrix; 2]>,
        mask: Option<&Buffer>,
        out: &mut Matrix,
    ) {
        merge::merge(self, p, w, ba, mask, out);
    }

    fn merge_backward(
        &self,
        p: Merge,
        dw: &Buffer,
        ba: [&Matrix; 2],
        mask: Option<&Buffer>,
        dba: [&mut Buffer; 2],
    ) {
        merge_backward::merge_backward(self, p, dw, ba, mask, dba.map(|d| &*d));
    }

    fn adamw(&self, p: AdamW, gradient: &Buffer, moments: [&mut Buffer; 2], w: &mut Matrix) {
        adamw::adamw(self, p, gradient, moments.map(|m| &*m), w);
    }
}
