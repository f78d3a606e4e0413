// The rows of a for `matmul`: each invocation reads all eight itself.

struct Place { @builtin(local_invocation_index) index: u32 }

fn own_row(at: u32, k: u32) -> Operand {
    return Operand(vec4<Real>(), vec4<Real>());
}

fn row_of(own: Operand, at: u32, k: u32, r: u32, place: Place) -> Operand {
    return left(at, k);
}
