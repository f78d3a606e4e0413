//! Size of the routing of a mixture on a device.

/// Returns the words of the routing of `assigned` = rows · top_k assignments. `expert_sort`
/// describes its regions: four words an assignment, two bounds an expert and at the end, and three
/// words for each tile of rows, of which there are at most `assigned + experts`.
pub fn words(assigned: usize, experts: usize) -> usize {
    4 * assigned + 2 * (experts + 1) + 3 * (assigned + experts)
}
