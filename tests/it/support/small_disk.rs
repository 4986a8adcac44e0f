//! A disk that a test can fill.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A small disk at a directory, until it is dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// One of so many megabytes at `path`; nothing where this test may not mount one.
    pub fn mount(path: PathBuf, megabytes: u32) -> Option<Self> {
        std::fs::create_dir_all(&path).expect("writable");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(&path)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
