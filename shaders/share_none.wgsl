// The rows of a for `matmul`: each invocation reads all eight itself.

struct Place { @builtin(local_invocation_index) index: u32 }

fn own_row(at: u32, k: u32) -> Eight {
    return Eight(vec4(0.0), vec4(0.0));
}

fn row_of(own: Eight, at: u32, k: u32, r: u32, place: Place) -> Eight {
    return left(at, k);
}
