// The rows of a product that is not grouped by expert: all of them, in order.

fn tile_of(y: u32) -> Tile {
    return Tile(y * BM, p.rows, 0u);
}

fn a_row(i: u32) -> u32 {
    return i;
}
