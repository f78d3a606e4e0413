// The rows of a for `matmul`: of eight neighbours in a subgroup (of at least eight) each reads one
// row and passes it round.

struct Place {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

fn own_row(at: u32, k: u32) -> Operand {
    return left(at, k);
}

fn row_of(own: Operand, at: u32, k: u32, r: u32, place: Place) -> Operand {
    let lane = (place.lane & ~7u) + r;
    return Operand(subgroupShuffle(own.even, lane), subgroupShuffle(own.odd, lane));
}
