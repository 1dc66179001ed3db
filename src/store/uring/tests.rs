//! A ring, on files of its own.
#![expect(
    unsafe_code,
    reason = "an entry of another kind goes to the ring by hand"
)]

use super::*;

fn slot(op: Op) -> Slot {
    Slot {
        op: Some(op),
        token: 1,
        done: 0,
        retries: 0,
    }
}

fn read() -> Slot {
    slot(Op::Read {
        offset: 0,
        buf: IoBuf::new(8192),
    })
}

fn failure(verdict: Verdict) -> io::Error {
    match verdict {
        Verdict::Finished(Err(e)) => e,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_short_transfer_goes_on_where_it_stopped() {
    let mut slot = read();
    assert!(matches!(judge(&mut slot, 4096, 512), Verdict::GoesOn));
    assert_eq!(slot.done, 4096);
    // Not at a multiple of the alignment: from the last one on.
    assert!(matches!(judge(&mut slot, 1000, 512), Verdict::GoesOn));
    assert_eq!(slot.done, 4096 + 512);
    let rest = 8192 - 4096 - 512;
    assert!(matches!(
        judge(&mut slot, rest, 512),
        Verdict::Finished(Ok(()))
    ));

    let mut slot = read();
    assert!(matches!(judge(&mut slot, 1, 1), Verdict::GoesOn));
    assert_eq!(slot.done, 1);
}

#[test]
fn the_end_of_the_image_is_no_success() {
    let mut slot = read();
    assert!(matches!(judge(&mut slot, 4096, 512), Verdict::GoesOn));
    let e = failure(judge(&mut slot, 0, 512));
    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    let e = failure(judge(&mut read(), 100, 512));
    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    let mut write = slot_of_write();
    let e = failure(judge(&mut write, 0, 512));
    assert_eq!(e.kind(), io::ErrorKind::WriteZero);
}

fn slot_of_write() -> Slot {
    slot(Op::Write {
        offset: 0,
        buf: IoBuf::new(4096),
    })
}

#[test]
fn what_passes_is_tried_again_within_bounds() {
    for errno in [libc::EINTR, libc::EAGAIN] {
        let mut slot = read();
        for _ in 0..MAX_RETRIES {
            assert!(matches!(judge(&mut slot, -errno, 512), Verdict::GoesOn));
        }
        let e = failure(judge(&mut slot, -errno, 512));
        assert_eq!(e.raw_os_error(), Some(errno));
    }
    let e = failure(judge(&mut slot_of_write(), -libc::ENOSPC, 512));
    assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn a_medium_without_deallocation_has_followed_the_hint() {
    let gone = || slot(Op::Deallocate { offset: 0, len: 1 });
    let verdict = judge(&mut gone(), -libc::EOPNOTSUPP, 512);
    assert!(matches!(verdict, Verdict::Finished(Ok(()))));
    let e = failure(judge(&mut gone(), -libc::EIO, 512));
    assert_eq!(e.raw_os_error(), Some(libc::EIO));
    let e = failure(judge(&mut slot(Op::Sync), -libc::EOPNOTSUPP, 512));
    assert_eq!(e.raw_os_error(), Some(libc::EOPNOTSUPP));
}

/// What the kernel answers to an entry, whoever made it.
fn answer(ring: &mut Ring, entry: &squeue::Entry) -> i32 {
    // SAFETY: the entries of the test below name static memory, or none.
    unsafe { ring.ring.submission().push(entry).unwrap() };
    let args = SubmitArgs::new();
    let wait = Timespec::from(Duration::from_secs(60));
    let args = args.timespec(&wait);
    ring.ring.submitter().submit_with_args(1, &args).unwrap();
    let answer = ring.ring.completion().next().unwrap();
    answer.result()
}

#[test]
fn a_ring_does_nothing_but_what_it_is_for() {
    use io_uring::types::Fd;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, [7; 512]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let owner = file.try_clone().unwrap();
    let fd = Fd(owner.as_raw_fd());
    let way = super::super::channel::Way::Cached;
    let data = Arc::new(Data::new(file, None, way, owner));
    let mut ring = match Ring::new(data, 4) {
        Ok(ring) => ring,
        Err(e) => return println!("skipped: no io_uring: {e}"),
    };
    ring.enable().unwrap();
    let buf = Box::leak(Box::new([0_u8; 512])).as_mut_ptr();
    let fixed = opcode::Read::new(DATA, buf, 512).build();
    assert_eq!(answer(&mut ring, &fixed), 512);
    let refused = [
        ("openat", opcode::OpenAt::new(fd, c"/".as_ptr()).build()),
        ("socket", opcode::Socket::new(1, 1, 0).build()),
        (
            "connect",
            opcode::Connect::new(fd, std::ptr::null(), 0).build(),
        ),
        ("unlinkat", opcode::UnlinkAt::new(fd, c"x".as_ptr()).build()),
        ("close", opcode::Close::new(fd).build()),
        ("nop", opcode::Nop::new().build()),
        ("another file", opcode::Read::new(fd, buf, 512).build()),
        (
            "a chain of entries",
            opcode::Read::new(DATA, buf, 512)
                .build()
                .flags(squeue::Flags::IO_LINK),
        ),
    ];
    for (what, entry) in refused {
        assert_eq!(answer(&mut ring, &entry), -libc::EACCES, "{what}");
    }
    let submitter = ring.ring.submitter();
    let registered = submitter.register_files(&[fd.0]);
    let refused = registered.unwrap_err().raw_os_error();
    assert_eq!(refused, Some(libc::EACCES));
    assert!(submitter.register_restrictions(&mut []).is_err());
    submitter.unregister_files().unwrap();
}

/// A ring on a file of `len` bytes, in use; `None` where there is none.
fn ring_on(len: usize, depth: u32) -> Option<(tempfile::TempDir, Ring)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, vec![7; len]).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&path);
    let file = file.unwrap();
    let owner = file.try_clone().unwrap();
    let way = super::super::channel::Way::Cached;
    let data = Arc::new(Data::new(file, None, way, owner));
    match Ring::new(data, depth) {
        Ok(mut ring) => {
            ring.enable().unwrap();
            Some((dir, ring))
        }
        Err(e) => {
            println!("skipped: no io_uring: {e}");
            None
        }
    }
}

#[test]
fn a_disk_without_work_is_told_at_once_and_large_reads_wait_for_their_neighbours() {
    let Some((_dir, mut ring)) = ring_on(4 * SMALL, 8) else {
        return;
    };
    let read = |len| Op::Read {
        offset: 0,
        buf: IoBuf::new(len),
    };
    ring.submit(read(SMALL), 1, 0);
    assert_eq!(ring.queued.len(), 0);
    ring.submit(read(2 * SMALL), 2, 0);
    ring.submit(read(2 * SMALL), 3, 0);
    assert_eq!(ring.queued.len(), 2);
    ring.kick();
    assert_eq!(ring.queued.len(), 0);
    let mut done = Vec::new();
    while ring.in_flight() > 0 {
        ring.wait(Duration::from_secs(60));
        ring.reap(&mut done);
    }
    assert_eq!(done.len(), 3);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
}

#[test]
fn a_burst_of_reads_is_handed_over_in_parts_of_which_one_hears() {
    let count = 2 * READS_AT_ONCE + 1;
    let Some((_dir, mut ring)) = ring_on(4096, 32) else {
        return;
    };
    for token in 0..count as u64 {
        let buf = IoBuf::new(4096);
        ring.submit(Op::Read { offset: 0, buf }, token, 0);
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while ring.ring.completion().len() < count && Instant::now() < deadline {
        ring.enter(Some(Duration::from_millis(1)));
    }
    let mut done = Vec::new();
    for left in [READS_AT_ONCE + 1, 1, 0] {
        ring.reap(&mut done);
        assert_eq!(done.len(), count - left);
        assert_eq!(ring.is_ready(), left > 0);
    }
    assert_eq!(ring.in_flight(), 0);
}

#[cfg(asan)]
#[test]
fn a_buffer_that_the_kernel_has_is_nobody_elses() {
    use super::super::sys::is_forbidden;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, [7; 8192]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let owner = file.try_clone().unwrap();
    let way = super::super::channel::Way::Cached;
    let data = Arc::new(Data::new(file, None, way, owner));
    let mut ring = Ring::new(data, 4).unwrap();
    let buf = IoBuf::new(8192);
    let memory = buf.as_ptr();
    ring.submit(Op::Read { offset: 0, buf }, 1, 0);
    assert!(
        !is_forbidden(memory),
        "not the kernel's yet: nobody owns the ring"
    );
    ring.kick();
    assert!(is_forbidden(memory) && is_forbidden(memory.wrapping_add(8191)));
    let mut done = Vec::new();
    while done.is_empty() {
        ring.wait(Duration::from_secs(60));
        ring.reap(&mut done);
    }
    assert_eq!(done[0].buf.as_ref().unwrap()[8191], 7);
    assert!(!is_forbidden(memory));
}

#[test]
fn a_ring_of_another_thread_fails_what_it_is_given_and_keeps_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create_new(dir.path().join("image")).unwrap();
    let owner = file.try_clone().unwrap();
    let data = Arc::new(Data::new(
        file,
        None,
        super::super::channel::Way::Cached,
        owner,
    ));
    let mut ring = match Ring::new(data, 4) {
        Ok(ring) => ring,
        Err(e) => return println!("skipped: no io_uring: {e}"),
    };
    if !ring.ring.params().is_setup_single_issuer() {
        return println!("skipped: this kernel ties no ring to a thread");
    }
    ring.submit(Op::Sync, 1, 0);
    ring.kick();
    let mut done = Vec::new();
    while done.is_empty() {
        ring.wait(Duration::from_secs(60));
        ring.reap(&mut done);
    }
    let elsewhere = std::thread::spawn(move || {
        for token in 2..12 {
            ring.submit(Op::Sync, token, 0);
        }
        ring.kick();
        let mut done = Vec::new();
        ring.reap(&mut done);
        assert_eq!((done.len(), ring.in_flight()), (10, 0));
        assert!(done.iter().all(|completion| completion.result.is_err()));
        ring.submit(Op::Sync, 12, 0);
        done.clear();
        ring.reap(&mut done);
        assert_eq!(done.len(), 1);
    });
    elsewhere.join().unwrap();
}
