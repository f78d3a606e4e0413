//! The gradients of the CPU's operations, each in a file of its own.

use super::{
    Batch, Cpu, Matrix, Pages, Routing, adamw, attention, attention_backward, contrastive,
    cross_entropy, embed_backward, expert, expert_backward, gate_up_backward, linear_add_backward,
    merge, merge_backward, pool_backward, qkv_backward, rmsnorm_backward, route_backward,
};
use crate::ops::{
    AdamW, Attention, Backward, Contrast, Contrastive, CrossEntropy, Expert, GateUp, LinearAdd,
    Merge, PoolingSpan, Qkv, Result, RmsNorm, Route,
};
use rayon::prelude::*;

type Buffer = Vec<f32>;

impl Backward for Cpu {
    fn parameters(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Matrix> {
        debug_assert_eq!(rows * cols, values.len());
        Ok(Matrix { own: values.to_vec(), starts: vec![0, rows], cols, ..Matrix::new(&[]) })
    }

    async fn read_parameters(&self, w: &Matrix) -> Result<Vec<f32>> {
        Ok(w.own.clone())
    }

    fn clear(&self, buffer: &mut Buffer, len: usize) {
        buffer[..len].par_chunks_mut(1 << 16).for_each(|part| part.fill(0.0));
    }

    fn copy(&self, from: &Buffer, len: usize, to: &mut Buffer) {
        to[..len].copy_from_slice(&from[..len]);
    }

    async fn squares(&self, buffer: &Buffer, len: usize) -> Result<f64> {
        // Sums of fixed parts, added in their order: the same bits with any number of threads.
        let square = |part: &[f32]| part.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        Ok(buffer[..len].par_chunks(1 << 16).map(square).collect::<Vec<f64>>().iter().sum())
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
        attention::attention(p, q, pages, &batch.layout, out, Some(lse));
    }

    fn gate_up_kept(&self, p: GateUp, h: &Buffer, w: &Matrix, out: &mut Buffer, kept: &mut Buffer) {
        gate_up_backward::gate_up_kept(p, h, w, out, kept);
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
        expert::expert_gate_up(p, h, w, routing, out, Some(kept));
    }

    fn embed_backward(&self, dim: u32, batch: &Batch, dx: &Buffer, dtable: &mut Buffer) {
        embed_backward::embed_backward(dim, batch, dx, dtable);
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
        rmsnorm_backward::rmsnorm_backward(p, x, weight, dh, dx, dweight);
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
        qkv_backward::qkv_backward(p, h, w, batch, dqkv.map(Vec::as_slice), dh, dw);
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
        let gradients = dqkv.map(Vec::as_mut_slice);
        let layout = &batch.layout;
        attention_backward::attention_backward(p, q, pages, layout, [out, lse, dout], gradients);
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
        linear_add_backward::linear_add_backward(p, a, w, dx, da, dw);
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
        gate_up_backward::gate_up_backward(p, h, w, kept, dout, dh, dw);
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
        expert_backward::expert_down_add_backward(p, a, w, routing, dx, [da, dweights], dw);
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
        route_backward::route_backward(p, h, w, routing, [dweights, balance], dh, dw);
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
        let rows = (h.as_slice(), dout.as_slice());
        expert_backward::expert_gate_up_backward(p, rows, w, routing, kept, dh, dw);
    }

    fn pool_backward(&self, dim: u32, spans: &[PoolingSpan], dout: &Buffer, dh: &mut Buffer) {
        pool_backward::pool_backward(dim, spans, dout, dh);
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
        let rows = cross_entropy::rows(rows, targets, scales);
        cross_entropy::cross_entropy(p, &rows, h, w, losses, dh, dw);
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
        let gradients = [dqueries.as_mut_slice(), dpassages.as_mut_slice()];
        contrastive::contrastive(p, wanted, [queries, passages], losses, gradients);
    }

    fn merge(
        &self,
        p: Merge,
        w: &Matrix,
        ba: Option<[&Matrix; 2]>,
        mask: Option<&Buffer>,
        out: &mut Matrix,
    ) {
        let ba = ba.map(|ba| ba.map(|m| m.own.as_slice()));
        merge::merge(p, w, ba, mask.map(Vec::as_slice), &mut out.own);
    }

    fn merge_backward(
        &self,
        p: Merge,
        dw: &Buffer,
        ba: [&Matrix; 2],
        mask: Option<&Buffer>,
        dba: [&mut Buffer; 2],
    ) {
        let (ba, dba) = (ba.map(|m| m.own.as_slice()), dba.map(Vec::as_mut_slice));
        merge_backward::merge_backward(p, dw, ba, mask.map(Vec::as_slice), dba);
    }

    fn adamw(&self, p: AdamW, gradient: &Buffer, moments: [&mut Buffer; 2], w: &mut Matrix) {
        adamw::adamw(p, gradient, moments.map(Vec::as_mut_slice), &mut w.own);
    }
}
