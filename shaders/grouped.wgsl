// The rows of a product that is grouped by expert: tiles that `expert_sort` made on the device.
// Regions of the routing are in expert_sort.wgsl.

@group(0) @binding(5) var<storage, read> routing: array<u32>;

fn tile_of(y: u32) -> Tile {
    let starts = 4u * p.assigned + p.experts + 1u;
    var tile = y;
    if p.only > 0u {
        tile += routing[starts + p.only - 1u];
    }
    let at = starts + p.experts + 1u + 3u * tile;
    return Tile(routing[at], routing[at + 1u], routing[at + 2u]);
}
