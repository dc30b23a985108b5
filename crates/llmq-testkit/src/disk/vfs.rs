//! The file system as SQLite sees it: every call goes on to the system's own, and what changes a
//! file is told to [`Shared`] first.
//!
//! # Safety
//!
//! This is the only unsafe code of the workspace. It rests on what SQLite promises of a VFS
//! (sqlite.org/c3ref/vfs.html, sqlite.org/c3ref/io_methods.html):
//!
//! - SQLite gives `xOpen` a block of `szOsFile` bytes, aligned for pointers. Ours is a [`Handle`]
//!   and behind it the block of the system's VFS, so [`base`] points at a file that the system's
//!   `xOpen` has filled. Every other method gets a block that our `xOpen` has filled.
//! - `Handle::methods` is set only when the system's `xOpen` left its own methods behind, and then
//!   SQLite closes the file; otherwise it stays null, and SQLite calls none of them.
//! - Buffers are valid for the length that is given with them, for the call.
//! - The VFS, its name and its [`Shared`] are leaked, so every pointer to them stays valid; what
//!   changes in `Shared` is behind a lock, since SQLite may call from any thread.
//! - The system's VFS is registered for the whole life of the process, and its methods are those
//!   of `os_unix.c`: version 2 or later, none of them null.

#![expect(
    unsafe_code,
    reason = "SQLite is C: its files are reached by no other way"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use rusqlite::ffi::{
    SQLITE_OK, sqlite3_file, sqlite3_filename, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs,
    sqlite3_vfs_find, sqlite3_vfs_register,
};

use super::{Shared, Verdict, part_of};

/// An open file: ours, and the system's behind it.
#[repr(C)]
struct Handle {
    /// What SQLite calls; null when the file could not be opened.
    methods: *const sqlite3_io_methods,
    shared: &'static Shared,
    /// Its number there; `None` of a file without a name, which ends with its connection.
    file: Option<usize>,
}

/// Registers a VFS with this name, whose files are told to `shared`.
pub(super) fn register(name: &str, shared: &'static Shared) {
    let name = CString::new(name)
        .expect("a name of ours has no zero byte")
        .into_raw();
    // SAFETY: asking for the default VFS has no preconditions; SQLite initialises itself.
    let system = unsafe { sqlite3_vfs_find(ptr::null()) };
    assert!(!system.is_null(), "the system has a VFS");
    // SAFETY: it is not null, and is never unregistered.
    let of_system = unsafe { *system };
    let handle = c_int::try_from(size_of::<Handle>()).expect("it is small");
    let vfs = Box::leak(Box::new(sqlite3_vfs {
        iVersion: 2,
        szOsFile: handle + of_system.szOsFile,
        pNext: ptr::null_mut(),
        zName: name,
        pAppData: ptr::from_ref(Box::leak(Box::new(Ours { system, shared })))
            .cast_mut()
            .cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        // The rest of the system's asks nothing of the VFS that it is called with.
        ..of_system
    }));
    // SAFETY: both are leaked, so they outlive every connection.
    let registered = unsafe { sqlite3_vfs_register(vfs, 0) };
    assert_eq!(registered, SQLITE_OK, "SQLite takes a VFS with a new name");
}

/// What is known of one VFS of ours.
struct Ours {
    system: *mut sqlite3_vfs,
    shared: &'static Shared,
}

/// What is behind a VFS of ours.
///
/// # Safety
///
/// `vfs` was made by [`register`].
unsafe fn ours(vfs: *mut sqlite3_vfs) -> &'static Ours {
    // SAFETY: `register` put a leaked `Ours` there.
    unsafe { &*(*vfs).pAppData.cast::<Ours>() }
}

/// The system's file behind ours.
///
/// # Safety
///
/// `file` is a block that SQLite made for a VFS of ours.
unsafe fn base(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: the block goes on behind the handle, whose size is a multiple of its alignment.
    unsafe { file.cast::<Handle>().add(1).cast() }
}

/// The handle of an open file.
///
/// # Safety
///
/// `file` was opened by [`open`].
unsafe fn handle<'a>(file: *mut sqlite3_file) -> &'a Handle {
    // SAFETY: `open` wrote it there.
    unsafe { &*file.cast::<Handle>() }
}

/// Calls a method of the system's file.
macro_rules! system {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let base = base($file);
        let method = (*(*base).pMethods).$method.expect("the system's files have all methods");
        method(base $(, $argument)*)
    }};
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // 2: the log's index in shared memory, and no pages that are mapped instead of read.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    // SAFETY: see the module. `name` is null or ends with a zero, and is the system's to read.
    unsafe {
        let ours = ours(vfs);
        let number = path(name).map(|path| ours.shared.opens(&path));
        file.cast::<Handle>().write(Handle {
            methods: ptr::null(),
            shared: ours.shared,
            file: number,
        });
        let opened = (*ours.system).xOpen.expect("the system opens files")(
            ours.system,
            name,
            base(file),
            flags,
            flags_out,
        );
        if !(*base(file)).pMethods.is_null() {
            (*file).pMethods = &raw const METHODS;
        }
        opened
    }
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: see the module.
    unsafe {
        let ours = ours(vfs);
        if let Some(path) = path(name)
            && let Verdict::Fail(code) = ours.shared.deletes(&path, sync != 0)
        {
            return code;
        }
        (*ours.system).xDelete.expect("the system deletes files")(ours.system, name, sync)
    }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xClose) }
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    to: *mut c_void,
    count: c_int,
    at: sqlite3_int64,
) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xRead, to, count, at) }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    from: *const c_void,
    count: c_int,
    at: sqlite3_int64,
) -> c_int {
    // SAFETY: see the module.
    unsafe {
        let handle = handle(file);
        if let Some(number) = handle.file {
            let length = usize::try_from(count).unwrap_or(0);
            let bytes = std::slice::from_raw_parts(from.cast::<u8>(), length);
            if let Verdict::Fail(code) = handle.shared.writes(number, at.cast_unsigned(), bytes) {
                // A disk that gets full takes what it still can.
                let part = c_int::try_from(part_of(length)).unwrap_or(0);
                let _ = system!(file, xWrite, from, part, at);
                return code;
            }
        }
        system!(file, xWrite, from, count, at)
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: sqlite3_int64) -> c_int {
    // SAFETY: see the module.
    unsafe {
        let handle = handle(file);
        if let Some(number) = handle.file
            && let Verdict::Fail(code) = handle.shared.cuts(number, length.cast_unsigned())
        {
            return code;
        }
        system!(file, xTruncate, length)
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: see the module.
    unsafe {
        let handle = handle(file);
        if let Some(number) = handle.file {
            match handle.shared.syncs(number) {
                Verdict::Fail(code) => return code,
                Verdict::Pretend => return SQLITE_OK,
                Verdict::Do => {}
            }
        }
        system!(file, xSync, flags)
    }
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xFileSize, size) }
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xLock, level) }
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xUnlock, level) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, held: *mut c_int) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xCheckReservedLock, held) }
}

unsafe extern "C" fn file_control(
    file: *mut sqlite3_file,
    which: c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xFileControl, which, argument) }
}

unsafe extern "C" fn sector_size(file: *mut sqlite3_file) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xSectorSize) }
}

unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xDeviceCharacteristics) }
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    page: c_int,
    page_bytes: c_int,
    extend: c_int,
    to: *mut *mut c_void,
) -> c_int {
    // SAFETY: see the module.
    unsafe {
        if extend != 0
            && let Verdict::Fail(code) = handle(file).shared.maps()
        {
            return code;
        }
        system!(file, xShmMap, page, page_bytes, extend, to)
    }
}

unsafe extern "C" fn shm_lock(
    file: *mut sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xShmLock, first, count, flags) }
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    // SAFETY: see the module.
    unsafe { system!(file, xShmBarrier) }
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: see the module.
    unsafe { system!(file, xShmUnmap, delete) }
}

/// The file's name; none of one without.
///
/// # Safety
///
/// `name` is null or ends with a zero.
unsafe fn path(name: *const c_char) -> Option<PathBuf> {
    if name.is_null() {
        return None;
    }
    // SAFETY: it ends with a zero.
    let name = unsafe { CStr::from_ptr(name) };
    // Tests have names in UTF-8.
    Some(Path::new(&*name.to_string_lossy()).to_owned())
}
