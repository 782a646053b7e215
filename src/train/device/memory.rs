//! How much memory this process can still take: what the machine has free, or what the limits of its
//! control groups leave, whichever is less. Containers and services are limited by groups.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes that can be had without swapping; `None` where the system does not tell.
pub fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The same for a system whose files lie under `root`.
pub fn available_under(root: &Path) -> Option<u64> {
    let free = [in_machine(root), in_groups(root)];
    free.into_iter().flatten().min()
}

fn in_machine(root: &Path) -> Option<u64> {
    let text = read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// What the group of this process and those around it leave.
fn in_groups(root: &Path) -> Option<u64> {
    let text = read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut free = Vec::new();
    for line in text.lines() {
        // hierarchy:controllers:path
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (base, files) = match controllers {
            "" => (root.join("sys/fs/cgroup"), VERSION_2),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (root.join("sys/fs/cgroup/memory"), VERSION_1)
            }
            _ => continue,
        };
        let mut group = base.join(path.trim_start_matches('/'));
        // A container sees its own group as the base, wherever the machine has it.
        while group.starts_with(&base) {
            free.extend(left_in(&group, &files));
            if !group.pop() {
                break;
            }
        }
    }
    free.into_iter().min()
}

/// Names of a group's files.
struct CgroupFiles {
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` with the bytes of files that were not read lately, which
    /// the system evicts first.
    cache: &'static str,
}

const VERSION_1: CgroupFiles = CgroupFiles {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file ",
};
const VERSION_2: CgroupFiles =
    CgroupFiles { limit: "memory.max", used: "memory.current", cache: "inactive_file " };

/// What a group's limit leaves; `None` where it has none.
fn left_in(group: &Path, files: &CgroupFiles) -> Option<u64> {
    let number =
        |name: &str| -> Option<u64> { read_to_string(group.join(name)).ok()?.trim().parse().ok() };
    // Version 2 says `max` for no limit, version 1 a number beyond all memory.
    let limit = number(files.limit)?;
    let used = number(files.used)?;
    let stat = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix(files.cache)?.trim().parse().ok());
    Some(limit.saturating_sub(used.saturating_sub(cache.unwrap_or(0))))
}
