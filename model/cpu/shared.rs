//! Shared mutable access to an array. This is the one place where threads write to one array
//! without the compiler's proof that they write to different parts of it: columns of a row-major
//! matrix are not a slice.

use std::marker::PhantomData;

/// An array that several threads write to, each to elements of its own.
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    array: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives `Shared`, and `slice`'s contract
// keeps any two threads away from the same element.
unsafe impl Send for Shared<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(array: &'a mut [f32]) -> Self {
        Self { start: array.as_mut_ptr(), len: array.len(), array: PhantomData }
    }

    /// Returns elements `at..at + len`.
    ///
    /// # Safety
    /// While the result lives, no other call may return any of these elements.
    #[expect(clippy::mut_from_ref, reason = "the contract stands in for the exclusive borrow")]
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at, "beyond the array");
        // SAFETY: the elements are inside the array, which is borrowed for 'a, and the contract
        // rules out aliasing.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
