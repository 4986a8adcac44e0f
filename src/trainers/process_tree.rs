//! The processes below this one.
//!
//! Linux: all of them, also those that left their session, because orphans
//! come back to a child subreaper. macOS has neither a subreaper nor `/proc`:
//! there the guard reaches the command's process group only, a daemon that
//! called `setsid` survives its step, and memory limits are not enforced.

use rustix::process::Pid;

/// Makes orphaned descendants children of this process, where the system can.
#[cfg(target_os = "linux")]
pub(super) fn adopt_orphans() -> std::io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Makes orphaned descendants children of this process, where the system can.
#[cfg(not(target_os = "linux"))]
pub(super) fn adopt_orphans() -> std::io::Result<()> {
    Ok(())
}

/// Every living descendant of this process; zombies do not count. `None` where the system cannot tell.
#[cfg(target_os = "linux")]
pub(super) fn descendants() -> Option<Vec<Pid>> {
    let own = rustix::process::getpid().as_raw_pid();
    let mut children: std::collections::HashMap<i32, Vec<(i32, bool)>> = std::collections::HashMap::new();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process that ended meanwhile is no descendant.
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else { continue };
        if let Some((parent, alive)) = parent_of(&stat) {
            children.entry(parent).or_default().push((pid, alive));
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![own];
    while let Some(parent) = parents.pop() {
        for (pid, alive) in children.remove(&parent).unwrap_or_default() {
            parents.push(pid);
            if alive {
                found.extend(Pid::from_raw(pid));
            }
        }
    }
    Some(found)
}

/// Every living descendant of this process; zombies do not count. `None` where the system cannot tell.
#[cfg(not(target_os = "linux"))]
pub(super) fn descendants() -> Option<Vec<Pid>> {
    None
}

/// Parent and whether it lives, of `/proc/<pid>/stat`: `pid (name) state ppid …`, and the name may
/// contain anything, parentheses included.
#[cfg(target_os = "linux")]
fn parent_of(stat: &[u8]) -> Option<(i32, bool)> {
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((parent, !matches!(state, "Z" | "X")))
}

/// Bytes of memory that these processes use, if that is more than `limit`; else a cheap upper bound of it.
///
/// Resident sizes count shared pages once per process, so a trainer with forked workers would seem
/// to use many times what it does. They are summed first because they are cheap; only a sum over
/// the limit is looked at again in proportional sizes, which divide shared pages among their users.
#[cfg(target_os = "linux")]
pub(super) fn memory(pids: &[Pid], limit: u64) -> u64 {
    let resident: u64 = pids.iter().filter_map(|pid| resident(*pid)).sum();
    if resident <= limit {
        return resident;
    }
    pids.iter().filter_map(|pid| proportional(*pid).or_else(|| self::resident(*pid))).sum()
}

/// Bytes of memory that these processes use; unknown here.
#[cfg(not(target_os = "linux"))]
pub(super) fn memory(_pids: &[Pid], _limit: u64) -> u64 {
    0
}

/// Ends every process of this machine that was started with `name=value` in its environment, until
/// none is left that can be read and ended.
#[cfg(target_os = "linux")]
pub(super) fn kill_marked(name: &str, value: &std::ffi::OsStr) {
    use std::os::unix::ffi::OsStrExt;
    /// Enough for what forks while it is looked for.
    const ROUNDS: usize = 20;
    let mark = [name.as_bytes(), b"=", value.as_bytes()].concat();
    for _ in 0..ROUNDS {
        let mut found = false;
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) else { continue };
            // The environment of a zombie is empty.
            let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
            if environment.split(|&byte| byte == 0).any(|variable| variable == mark) {
                found |= rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok();
            }
        }
        if !found {
            return;
        }
    }
}

/// Ends every process that was started with `name=value` in its environment; cannot be told here.
#[cfg(not(target_os = "linux"))]
pub(super) fn kill_marked(_name: &str, _value: &std::ffi::OsStr) {}

#[cfg(target_os = "linux")]
fn resident(pid: Pid) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", pid.as_raw_pid())).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}

#[cfg(target_os = "linux")]
fn proportional(pid: Pid) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_pid())).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    let kilobytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_read_past() {
        assert_eq!(parent_of(b"12 (a) R 7 (x)) S 4 12 12 0"), Some((4, true)));
        assert_eq!(parent_of(b"12 (sh) Z 4 12 12 0"), Some((4, false)));
        assert_eq!(parent_of(b"12 sh"), None);
    }
}
