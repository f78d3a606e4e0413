// A total order of (value, id): larger values first, the lower id first where values are equal.
// Values are compared as unsigned integers that sort as the floats do.

fn order_of(value: f32) -> u32 {
    // Adding 0 makes −0 equal to 0.
    let bits = bitcast<u32>(value + 0.0);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn value_of(order: u32) -> f32 {
    return bitcast<f32>(select(~order, order & 0x7fffffffu, (order & 0x80000000u) != 0u));
}

// Everything up to this place in the order.
struct Prefix { order: u32, id: u32 }

fn within(order: u32, id: u32, prefix: Prefix) -> bool {
    return order > prefix.order || (order == prefix.order && id <= prefix.id);
}
