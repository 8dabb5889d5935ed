//! Material that follows its files: read again every few seconds and on request, taken over when all of it is good.
//!
//! Files are looked at by what they hold, not by their times: Kubernetes swaps a link under a directory, people copy one
//! file after the other. So what does not load is given until the next look before it is told, once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::files::{Fingerprint, Flaw, Flaws, Snapshot, Source};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How a door's certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whom the door's own certificate names.
    pub holder: String,
    /// When the door's own certificate expires, or one that links it with its CA, whichever is first.
    pub certificate_expires: SystemTime,
    /// When the last CA expires that the door trusts, if it trusts any.
    pub authorities_expire: Option<SystemTime>,
    /// Changes of the files that were taken over.
    pub reloads: u64,
    /// Changes of the files that were refused.
    pub refusals: u64,
    /// What is wrong with the files as they lie there, while the door goes on with what it had.
    pub refused: Option<Flaws>,
    /// What is not good about the files, and no reason to refuse them.
    pub warnings: Vec<Flaw>,
}

/// What was made of the files.
#[derive(Debug)]
pub(crate) struct Built<T> {
    pub(crate) material: T,
    pub(crate) holder: String,
    pub(crate) certificate_expires: SystemTime,
    pub(crate) authorities_expire: Option<SystemTime>,
}

type Build<T> = dyn Fn(&Snapshot, SystemTime) -> Result<Built<T>, Flaws> + Send + Sync;

/// Material that follows its files.
pub(crate) struct Followed<T> {
    /// For the log: which door it is.
    door: &'static str,
    source: Source,
    build: Box<Build<T>>,
    current: ArcSwap<T>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Fingerprint,
    /// What did not load when last looked at, and whether that was told.
    bad: Option<(Fingerprint, bool)>,
    status: Status,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// A timer. Files may be half-way through a change.
    Look,
    /// A person, who is told at once.
    Reload,
}

impl<T> Followed<T> {
    /// Reads the files for the first time.
    pub(crate) fn load(
        door: &'static str,
        source: Source,
        build: impl Fn(&Snapshot, SystemTime) -> Result<Built<T>, Flaws> + Send + Sync + 'static,
    ) -> Result<Followed<T>, Flaws> {
        let snapshot = source.read();
        let Built { material, holder, certificate_expires, authorities_expire } =
            build(&snapshot, SystemTime::now())?;
        let warnings = snapshot.open_secrets();
        let status = Status {
            holder,
            certificate_expires,
            authorities_expire,
            reloads: 0,
            refusals: 0,
            refused: None,
            warnings,
        };
        let state = State { loaded: snapshot.fingerprint(), bad: None, status };
        Ok(Followed {
            door,
            source,
            build: Box::new(build),
            current: ArcSwap::from_pointee(material),
            state: Mutex::new(state),
        })
    }

    pub(crate) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    pub(crate) fn status(&self) -> Status {
        self.state.lock().status.clone()
    }

    /// Reads the files, and takes over what changed. `Ok(false)`: nothing did.
    pub(crate) fn reload(&self) -> Result<bool, Flaws> {
        self.take_over(Asked::Reload)
    }

    /// The same for a timer; what is wrong is told in the log.
    pub(crate) fn look(&self) {
        // Logged there.
        let _ = self.take_over(Asked::Look);
    }

    /// Makes new material of the files as they are known. What they hold now is for the next look.
    pub(crate) fn rebuild(&self) {
        let snapshot = self.source.read();
        let state = self.state.lock();
        if snapshot.fingerprint() == state.loaded
            && let Ok(built) = (self.build)(&snapshot, SystemTime::now())
        {
            self.current.store(Arc::new(built.material));
        }
    }

    fn take_over(&self, asked: Asked) -> Result<bool, Flaws> {
        let mut state = self.state.lock();
        let snapshot = self.source.read();
        let seen = snapshot.fingerprint();
        if seen == state.loaded {
            // Put back as it was, perhaps.
            state.bad = None;
            state.status.refused = None;
            return Ok(false);
        }
        match (self.build)(&snapshot, SystemTime::now()) {
            Ok(built) => {
                self.current.store(Arc::new(built.material));
                state.loaded = seen;
                state.bad = None;
                let status = &mut state.status;
                status.holder = built.holder;
                status.certificate_expires = built.certificate_expires;
                status.authorities_expire = built.authorities_expire;
                status.reloads += 1;
                status.refused = None;
                status.warnings = snapshot.open_secrets();
                info!(
                    door = self.door,
                    days_left = days_left(built.certificate_expires),
                    "took over new certificates"
                );
                for warning in &state.status.warnings {
                    warn!(door = self.door, "{warning}");
                }
                Ok(true)
            }
            Err(flaws) => {
                let told = match state.bad {
                    Some((bad, told)) if bad == seen => told,
                    Some(_) | None => false,
                };
                let tell = !told && (asked == Asked::Reload || state.bad.is_some_and(|(bad, _)| bad == seen));
                state.bad = Some((seen, told || tell));
                if tell {
                    state.status.refusals += 1;
                    state.status.refused = Some(flaws.clone());
                    warn!(
                        door = self.door,
                        "the changed certificates are refused, and the old ones go on: {flaws}"
                    );
                }
                Err(flaws)
            }
        }
    }

    /// Looks at the files for ever. `each` is called before each look.
    pub(crate) async fn follow(self: &Arc<Self>, mut each: impl FnMut())
    where
        T: Send + Sync + 'static,
    {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            each();
            let followed = Arc::clone(self);
            // A slow disk keeps nobody else waiting.
            if let Err(error) = tokio::task::spawn_blocking(move || followed.look()).await {
                warn!(door = self.door, %error, "cannot look at certificates");
            }
        }
    }
}

impl<T> std::fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Followed")
            .field("door", &self.door)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Whole days until `then`; 0 when it is past.
pub(crate) fn days_left(then: SystemTime) -> u64 {
    then.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400
}
