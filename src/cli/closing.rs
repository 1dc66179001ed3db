//! The end of `serve`, which a host's disk that does not answer must not put off for ever.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The disk is served.
    #[default]
    Ahead,
    /// It is being closed since then.
    Since(Instant),
    Over,
}

/// How far the end has come: told by the thread that closes the disk, watched by another, for the first may be held by
/// the kernel.
#[derive(Debug, Default)]
pub(super) struct Closing {
    state: Mutex<State>,
    changed: Condvar,
}

impl Closing {
    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }

    /// Closes the disk.
    pub(super) fn run<T>(&self, close: impl FnOnce() -> T) -> T {
        self.set(State::Since(Instant::now()));
        let closed = close();
        self.set(State::Over);
        closed
    }

    /// Waits until the disk is closed. If that takes longer than `patience`, `give_up` is called, before anybody can
    /// say that it was closed after all.
    pub(super) fn watch(&self, patience: Duration, give_up: impl FnOnce()) {
        let mut state = self.state.lock();
        loop {
            match *state {
                State::Over => return,
                State::Ahead => self.changed.wait(&mut state),
                State::Since(began) => {
                    let end = began + patience;
                    if self.changed.wait_until(&mut state, end).timed_out()
                        && *state == State::Since(began)
                    {
                        return give_up();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_watches_goes_on_when_it_is_over_and_gives_up_when_it_takes_too_long() {
        let closing = Arc::new(Closing::default());
        let watched = Arc::clone(&closing);
        let (tell, told) = channel();
        let watch = thread::spawn(move || watched.watch(LONG, || panic!("it took no minute")));
        assert_eq!(closing.run(|| 7), 7);
        watch.join().unwrap();
        closing.watch(Duration::ZERO, || panic!("it is over"));
        let watched = Arc::clone(&closing);
        closing.run(|| {
            thread::spawn(move || {
                watched.watch(Duration::from_millis(5), || tell.send(()).unwrap());
            });
            told.recv_timeout(LONG).unwrap();
        });
    }
}
