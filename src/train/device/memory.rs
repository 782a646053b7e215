//! How much memory this process can still take: what the machine has free, or what the limits of its
//! control groups leave, whichever is less. Containers and services are limited by groups.

use std::fs::read_to_string;
use std::path::Path;

use super::DeviceMemory;

/// Bytes that can be had without swapping; `None` where the system does not tell.
pub fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The same for a system whose files lie under `root`.
pub fn available_under(root: &Path) -> Option<u64> {
    let free = [in_machine(root), in_groups(root)];
    free.into_iter().flatten().min()
}

/// What this process can still take, and what there is in all: of the machine, or within the limits of its
/// control groups. `None` where the system does not tell.
pub fn of_machine() -> Option<DeviceMemory> {
    of_machine_under(Path::new("/"))
}

/// The same for a system whose files lie under `root`.
pub fn of_machine_under(root: &Path) -> Option<DeviceMemory> {
    let free = available_under(root)?;
    let all = [meminfo(root, "MemTotal:"), group_memory(root).map(|group| group.limit).min()];
    // A limit below what is free would say that nothing fits.
    let total = all.into_iter().flatten().min().unwrap_or(free).max(free);
    Some(DeviceMemory { free, total })
}

/// Who holds the machine's memory, for people: hone's own processes each, and the rest together. `None`
/// where the system does not tell.
pub fn held_memory() -> Option<String> {
    let own_name = std::env::current_exe().ok()?;
    let (mut server, mut trainers, mut others) = (0, 0, 0);
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let folder = entry.path();
        if entry.file_name().to_str().is_none_or(|name| name.parse::<u32>().is_err())
            || folder.ends_with(std::process::id().to_string())
        {
            continue;
        }
        let status = read_to_string(folder.join("status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let bytes = resident.and_then(kibibytes).unwrap_or(0);
        let command = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        let is_hone = words.next().is_some_and(|name| {
            Path::new(&*String::from_utf8_lossy(name)).file_name() == own_name.file_name()
        });
        match words.next() {
            Some(b"serve" | b"demo") if is_hone => server += bytes,
            Some(b"trainer") if is_hone => trainers += bytes,
            _ => others += bytes,
        }
    }
    Some(format!(
        "held: {} MiB by the server with the models that answer, {} MiB by other trainers, {} MiB by other \
         programs",
        server >> 20,
        trainers >> 20,
        others >> 20
    ))
}

fn in_machine(root: &Path) -> Option<u64> {
    meminfo(root, "MemAvailable:")
}

/// The line of `/proc/meminfo` that begins with `key`, in bytes.
fn meminfo(root: &Path, key: &str) -> Option<u64> {
    let text = read_to_string(root.join("proc/meminfo")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).and_then(kibibytes)
}

/// A number of KiB, as the system writes it, in bytes.
fn kibibytes(text: &str) -> Option<u64> {
    let number: u64 = text.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(number * 1024)
}

/// What the group of this process and those around it leave.
fn in_groups(root: &Path) -> Option<u64> {
    group_memory(root).map(|group| group.free).min()
}

/// The memory of the group of this process and of each one around it that has a limit.
fn group_memory(root: &Path) -> impl Iterator<Item = GroupMemory> + use<> {
    let text = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
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
            groups.extend(memory_of(&group, &files));
            if !group.pop() {
                break;
            }
        }
    }
    groups.into_iter()
}

/// A group's limit, and what it leaves, in bytes.
struct GroupMemory {
    limit: u64,
    free: u64,
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

/// `None` where a group has no limit.
fn memory_of(group: &Path, files: &CgroupFiles) -> Option<GroupMemory> {
    let number =
        |name: &str| -> Option<u64> { read_to_string(group.join(name)).ok()?.trim().parse().ok() };
    // Version 2 says `max` for no limit, version 1 a number beyond all memory.
    let limit = number(files.limit)?;
    let used = number(files.used)?;
    let stat = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix(files.cache)?.trim().parse().ok());
    let free = limit.saturating_sub(used.saturating_sub(cache.unwrap_or(0)));
    Some(GroupMemory { limit, free })
}
