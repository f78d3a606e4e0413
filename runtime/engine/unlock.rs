//! A file's lock that ends with its holder.

use std::fs::File;
use std::ops::{Deref, DerefMut};

/// A locked file that is unlocked when it is dropped.
///
/// Closing is not enough: the lock belongs to the open file, and a child process that another
/// thread is starting shares it from its fork to its exec.
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
        // Closing it unlocks it as well, only perhaps later.
        let _ = self.0.unlock();
    }
}
