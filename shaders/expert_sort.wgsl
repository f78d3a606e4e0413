// expert_sort: rows sorted by expert (then row), the list of tiles, and the sizes of the grouped
// products' grids, so that the host never waits for the routing.
//
// One workgroup. Each invocation has a stretch of the assignments; expert by expert they count
// theirs, a scan gives each its first place, and they write: stable and the same every time. The
// grids have a tile of BM rows per `tile_rows` rows of an expert, rounded up; an expert without rows
// has none. Bound by latency: experts · log₂ 256 barriers. Twin: the sort in model/cpu/route.rs.
// Params: `Sort` in expert.rs.
//
// Regions of the routing, with n = rows · top_k of its capacity and E experts:
//   n  expert of (row, k), ascending in k       n  its weight
//   n  place of (row, k) in the sorted order    n  row at that place
//   E + 1  first place of each expert           E + 1  first tile of each expert
//   3 (n + E)  tiles: first place, end, expert

struct Sort {
    // Rows · top_k of this pass, and of the routing's capacity.
    count: u32,
    assigned: u32,
    experts: u32,
    top_k: u32,
    tile_rows: u32,
    // Workgroups across the outputs of the two products; a grid is (this, tiles, 1), or with `few`
    // (tiles, this, 1), as matvec has it.
    gate_up: u32,
    down: u32,
    few: u32,
}

@group(0) @binding(0) var<uniform> p: Sort;
@group(0) @binding(1) var<storage, read_write> routing: array<u32>;
// Grids of gate_up for all experts, then for each alone; the same for down.
@group(0) @binding(2) var<storage, read_write> grids: array<u32>;

const WIDTH = 256u;
var<workgroup> counts: array<u32, WIDTH>;

@compute @workgroup_size(WIDTH)
fn main(@builtin(local_invocation_index) index: u32) {
    let stretch = (p.count + WIDTH - 1u) / WIDTH;
    let first = min(index * stretch, p.count);
    let end = min(first + stretch, p.count);
    let starts = 4u * p.assigned;
    let tile_starts = starts + p.experts + 1u;
    let tiles = tile_starts + p.experts + 1u;
    var start = 0u;
    var tile = 0u;
    for (var e = 0u; e < p.experts; e += 1u) {
        var own = 0u;
        for (var i = first; i < end; i += 1u) {
            own += select(0u, 1u, routing[i] == e);
        }
        // Inclusive scan over the invocations.
        workgroupBarrier();
        counts[index] = own;
        workgroupBarrier();
        for (var step = 1u; step < WIDTH; step *= 2u) {
            var before = 0u;
            if index >= step {
                before = counts[index - step];
            }
            workgroupBarrier();
            counts[index] += before;
            workgroupBarrier();
        }
        let total = counts[WIDTH - 1u];
        var place = start + counts[index] - own;
        for (var i = first; i < end; i += 1u) {
            if routing[i] == e {
                routing[2u * p.assigned + i] = place;
                routing[3u * p.assigned + place] = i / p.top_k;
                place += 1u;
            }
        }
        let tiles_here = (total + p.tile_rows - 1u) / p.tile_rows;
        for (var t = index; t < tiles_here; t += WIDTH) {
            let at = tiles + 3u * (tile + t);
            routing[at] = start + t * p.tile_rows;
            routing[at + 1u] = start + min((t + 1u) * p.tile_rows, total);
            routing[at + 2u] = e;
        }
        if index == 0u {
            routing[starts + e] = start;
            routing[tile_starts + e] = tile;
            write_grids(1u + e, tiles_here);
        }
        start += total;
        tile += tiles_here;
    }
    if index == 0u {
        routing[starts + p.experts] = start;
        routing[tile_starts + p.experts] = tile;
        write_grids(0u, tile);
    }
}

fn write_grids(n: u32, tiles: u32) {
    write_grid(3u * n, p.gate_up, tiles);
    write_grid(3u * (n + p.experts + 1u), p.down, tiles);
}

fn write_grid(at: u32, across: u32, tiles: u32) {
    grids[at + p.few] = across;
    grids[at + 1u - p.few] = tiles;
    grids[at + 2u] = 1u;
}
