//! Peak memory of the process, exactly: what the kernel counts against `RLIMIT_DATA`.
//!
//! The kernel refuses a mapping when the data segments (`VmData`: private writable memory, thread
//! stacks included) would pass `RLIMIT_DATA`, so the peak of `VmData` is the smallest limit that
//! training survives. The kernel keeps no high-water mark of it, and a thread that samples it misses
//! peaks shorter than its period. But `VmData` grows only while memory is being allocated: so the
//! allocator reads it right after each allocation that may have grown it, and no peak is missed.
//! Reading costs about a microsecond, and is done only while [`start_watching`] is in force.
//!
//! The binary installs the allocator:
//! ```ignore
//! #[global_allocator]
//! static ALLOCATOR: trialhead::trainer::memory::WatchedAllocator = WatchedAllocator;
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

/// Allocations of at least this size are followed by a look at `VmData`; smaller ones by a look
/// each time they add up to it. It is below glibc's smallest step of growth (128 KiB).
const LOOK_EVERY_BYTES: usize = 64 << 10;

static WATCHING: AtomicBool = AtomicBool::new(false);
static UNSEEN_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_PAGES: AtomicU64 = AtomicU64::new(0);
static LOOKS: AtomicU64 = AtomicU64::new(0);
/// Allocated and not freed since the watch began. Below 0 when what was freed is older than that.
static IN_USE_BYTES: AtomicI64 = AtomicI64::new(0);
static PEAK_IN_USE_BYTES: AtomicI64 = AtomicI64::new(0);
static COUNTERS: OnceLock<File> = OnceLock::new();

/// The system's allocator, watched while a probe measures memory. Off, it costs one load of a flag.
#[derive(Debug, Clone, Copy, Default)]
pub struct WatchedAllocator;

// SAFETY: every method hands its arguments to the system's allocator unchanged and returns what
// that returns; the look afterwards reads a file into the stack and allocates nothing.
unsafe impl GlobalAlloc for WatchedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system allocator's requirements.
        let memory = unsafe { System.alloc(layout) };
        note(layout.size());
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
        note_freed(layout.size());
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let memory = unsafe { System.alloc_zeroed(layout) };
        note(layout.size());
        memory
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        let memory = unsafe { System.realloc(memory, layout, new_size) };
        note_freed(layout.size());
        note(new_size);
        memory
    }
}

#[inline]
fn note(bytes: usize) {
    if WATCHING.load(Ordering::Relaxed) {
        note_watched(bytes);
    }
}

#[inline]
fn note_freed(bytes: usize) {
    if WATCHING.load(Ordering::Relaxed) {
        IN_USE_BYTES.fetch_sub(bytes as i64, Ordering::Relaxed);
    }
}

#[cold]
fn note_watched(bytes: usize) {
    // No allocation is larger than an i64 holds.
    let in_use = IN_USE_BYTES.fetch_add(bytes as i64, Ordering::Relaxed) + bytes as i64;
    PEAK_IN_USE_BYTES.fetch_max(in_use, Ordering::Relaxed);
    let unseen = UNSEEN_BYTES
        .fetch_add(bytes, Ordering::Relaxed)
        .saturating_add(bytes);
    if unseen >= LOOK_EVERY_BYTES {
        UNSEEN_BYTES.store(0, Ordering::Relaxed);
        look();
    }
}

/// Reads the data segments now and keeps the largest.
fn look() {
    if let Some(pages) = data_pages() {
        PEAK_PAGES.fetch_max(pages, Ordering::Relaxed);
        LOOKS.fetch_add(1, Ordering::Relaxed);
    }
}

/// The sixth field of `/proc/self/statm`: data segments and the main thread's stack, pages. Must not
/// allocate: it runs inside the allocator.
#[cfg(target_os = "linux")]
fn data_pages() -> Option<u64> {
    use std::os::unix::fs::FileExt;

    let mut line = [0_u8; 128];
    let length = COUNTERS.get()?.read_at(&mut line, 0).ok()?;
    let field = line[..length].split(|&byte| byte == b' ').nth(5)?;
    field.iter().try_fold(0_u64, |number, &byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + u64::from(byte - b'0'))
    })
}

#[cfg(not(target_os = "linux"))]
fn data_pages() -> Option<u64> {
    let _ = &COUNTERS;
    None
}

/// Watches from now on. Returns whether peaks can be measured: the binary must have installed
/// [`WatchedAllocator`] and the kernel must tell.
pub fn start_watching() -> bool {
    #[cfg(target_os = "linux")]
    {
        if COUNTERS.get().is_none()
            && let Ok(file) = File::open("/proc/self/statm")
        {
            // A second caller that was faster has opened the same file.
            let _ = COUNTERS.set(file);
        }
    }
    look();
    let looks = LOOKS.load(Ordering::Relaxed);
    WATCHING.store(true, Ordering::SeqCst);
    drop(std::hint::black_box(vec![0_u8; LOOK_EVERY_BYTES]));
    LOOKS.load(Ordering::Relaxed) > looks
}

/// From this size on a block is mapped by itself and given back when freed. The largest that glibc
/// allows, and the one its own threshold comes to in a process that has freed such blocks. Without
/// an upper end the heap of large blocks fragments: peaks then differ by 15% from run to run.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD_BYTES: i32 = 32 << 20;

/// Makes the C library keep freed memory for the next step instead of handing it back to the kernel.
///
/// A training step allocates and frees the same blocks over and over. glibc's defaults trim the heap
/// as soon as its top is free and map larger blocks anew each time, at thresholds that depend on what
/// the process happened to free before: the page faults then cost up to half of each step, and more
/// at some batch sizes than at others. With this the time per step is that of the arithmetic
/// (`mallopt(3)`; in the environment `MALLOC_TRIM_THRESHOLD_=-1 MALLOC_MMAP_THRESHOLD_=33554432`).
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};

        // SAFETY: mallopt takes two integers, locks the allocator and changes only its tuning.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
            mallopt(M_TRIM_THRESHOLD, -1);
        }
    }
}

/// What the process has allocated and not freed since [`start_watching`], bytes.
pub fn in_use() -> i64 {
    IN_USE_BYTES.load(Ordering::Relaxed)
}

/// Peaks of the process so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeakMemory {
    /// Of the data segments (`VmData`) since [`start_watching`]: decides.
    pub data_bytes: u64,
    /// Of resident memory (`VmHWM`) since the program was loaded: explains.
    pub resident_bytes: u64,
    /// Of what was allocated and not freed, since [`start_watching`]: explains. The data segments
    /// are larger by what the heap keeps and by the threads' stacks.
    pub in_use_bytes: u64,
}

/// The peaks, or `None` where the kernel does not tell or nothing was watched.
#[cfg(target_os = "linux")]
pub fn peak() -> Option<PeakMemory> {
    use nix::unistd::{SysconfVar, sysconf};

    look();
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    let status = procfs::process::Process::myself().ok()?.status().ok()?;
    // `statm` adds the main thread's stack, which `RLIMIT_DATA` does not count. It never shrinks.
    let stack_bytes = status.vmstk? * 1024;
    let pages = PEAK_PAGES.load(Ordering::Relaxed);
    (pages > 0).then_some(PeakMemory {
        data_bytes: (pages * page).saturating_sub(stack_bytes),
        resident_bytes: status.vmhwm? * 1024,
        in_use_bytes: u64::try_from(PEAK_IN_USE_BYTES.load(Ordering::Relaxed)).unwrap_or(0),
    })
}

/// The peaks, or `None` where the kernel does not tell or nothing was watched.
#[cfg(not(target_os = "linux"))]
pub fn peak() -> Option<PeakMemory> {
    None
}
