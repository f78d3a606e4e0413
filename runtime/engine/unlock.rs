//! A file lock that is released when its holder is dropped.

use std::fs::File;
use std::ops::{Deref, DerefMut};

/// A locked file that is unlocked when it is dropped.
///
/// Closing the file is not enough: the lock belongs to the open file, which a child process that
/// another thread is starting shares between its fork and its exec.
pub struct UnlockOnDrop(pub File);

impl Deref for UnlockOnDrop {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl DerefMut for UnlockOnDrop {
    fn deref_mut(&mut self) -> &mut File {
        &mut self.0
    }
}

impl Drop for UnlockOnDrop {
    fn drop(&mut self) {
        // If this fails, closing the file still unlocks it, possibly later.
        let _ = self.0.unlock();
    }
}
