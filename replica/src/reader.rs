//! The frames of a link as they come in. Nothing that is only announced takes memory, a frame that has begun must go on
//! coming, and the long ones share one [`Budget`].

use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout};

use crate::budget::{Budget, UNCOUNTED_BYTES, UnderWay, Whose};

/// Of a frame that has begun, so many bytes have to come each second.
const BYTES_PER_SECOND_MIN: u32 = 32 << 10;
/// It may be behind that by as much as this takes: what is lost on the way comes again within seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// A length, big-endian, stands before each frame.
const HEAD_BYTES: usize = 4;
/// Up to here a buffer grows fourfold, then twofold.
const GROWS_FOURFOLD_BELOW: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    read: R,
    bytes_max: usize,
    whose: Whose,
    budget: Arc<Budget>,
    buffer: BytesMut,
    /// The frame that has begun, if it is a long one.
    under_way: Option<UnderWay>,
    /// For how long it may stand still.
    patience: Duration,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Bodies of frames are at most `bytes_max` long.
    pub(crate) fn new(read: R, bytes_max: usize, whose: Whose, budget: &Arc<Budget>) -> Self {
        FrameReader {
            read,
            bytes_max,
            whose,
            budget: Arc::clone(budget),
            buffer: BytesMut::new(),
            under_way: None,
            patience: PATIENCE,
        }
    }

    /// The body of the next frame; none when the other side has ended the connection between two of them.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let whole = self.whole_bytes()?;
            if let Some(whole) = whole
                && self.buffer.len() >= whole
            {
                self.patience = PATIENCE;
                // The buffer of a long one holds nothing else, and is of no use for what comes next.
                let mut frame = match self.under_way.take() {
                    Some(_) => mem::take(&mut self.buffer),
                    None => self.buffer.split_to(whole),
                };
                frame.advance(HEAD_BYTES);
                return Ok(Some(frame.freeze()));
            }
            self.make_room(whole.unwrap_or_default());
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// How long the frame is that has begun, with its head.
    fn whole_bytes(&self) -> io::Result<Option<usize>> {
        let Some(head) = self.buffer.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > self.bytes_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        Ok(Some(HEAD_BYTES + length))
    }

    /// Makes room for more of a frame that will have `whole` bytes, in proportion to what has come of it.
    fn make_room(&mut self, whole: usize) {
        let len = self.buffer.len();
        if len < self.buffer.capacity() {
            return;
        }
        if whole <= UNCOUNTED_BYTES {
            self.buffer.reserve(UNCOUNTED_BYTES - len);
            return;
        }
        let factor = if len < GROWS_FOURFOLD_BELOW { 4 } else { 2 };
        let bytes = whole.min((len * factor).max(UNCOUNTED_BYTES));
        self.under_way.get_or_insert_with(|| self.budget.begin(self.whose)).holds(bytes);
        // It would make more room by itself than is asked for.
        let mut larger = BytesMut::with_capacity(bytes);
        larger.extend_from_slice(&self.buffer);
        self.buffer = larger;
    }

    /// Reads what there is. Waits for a frame to begin for as long as the stream does, and no longer than it may take for one
    /// that has begun.
    async fn fill(&mut self) -> io::Result<usize> {
        if self.buffer.is_empty() {
            return self.read.read_buf(&mut self.buffer).await;
        }
        loop {
            let begun = Instant::now();
            let read = timeout(self.patience, self.read.read_buf(&mut self.buffer));
            let read = match &self.under_way {
                None => read.await,
                Some(frame) => tokio::select! {
                    biased;
                    () = frame.displaced.cancelled() => return Err(io::Error::other("frames under way hold too much memory")),
                    read = read => read,
                },
            };
            let waited = begun.elapsed();
            match read {
                Ok(read) => {
                    let read = read?;
                    let earned = Duration::from_secs(read as u64) / BYTES_PER_SECOND_MIN;
                    self.patience = (self.patience.saturating_sub(waited) + earned).min(PATIENCE);
                    return Ok(read);
                }
                // This process stood still itself, and has not listened.
                Err(_) if waited > self.patience + PATIENCE / 2 => self.patience = PATIENCE,
                Err(_) => {
                    let text =
                        format!("a frame comes in with less than {BYTES_PER_SECOND_MIN} bytes a second");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use super::*;
    use crate::admission::Source;
    use crate::budget::Use;

    const MAX: usize = 64 << 20;

    struct Rig {
        far: DuplexStream,
        reader: FrameReader<DuplexStream>,
        budget: Arc<Budget>,
    }

    fn rig() -> Rig {
        let (near, far) = duplex(1 << 10);
        let budget = Arc::new(Budget::new(1 << 30, IntCounter::new("ended", "ended").unwrap()));
        let whose = Whose::Gateway(Source::of(Ipv4Addr::LOCALHOST.into()));
        Rig { far, reader: FrameReader::new(near, MAX, whose, &budget), budget }
    }

    fn body(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index % 251) as u8).collect()
    }

    #[tokio::test]
    async fn frames_of_any_length_come_out_as_they_went_in() {
        let Rig { mut far, mut reader, budget } = rig();
        let lengths = [0, 1, 3, 65_531, 65_532, 65_533, 7, 70_000, 1_100_000, 0, 5_000_000, 12];
        let write = async {
            for length in lengths {
                far.write_u32(length).await.unwrap();
                far.write_all(&body(length as usize)).await.unwrap();
            }
            drop(far);
        };
        let read = async {
            for length in lengths {
                assert_eq!(reader.next().await.unwrap().unwrap(), body(length as usize));
                assert_eq!(budget.taken(Use::Frames), 0, "it has come");
            }
            assert_eq!(reader.next().await.unwrap(), None);
        };
        tokio::join!(write, read);
    }

    #[tokio::test]
    async fn what_is_too_long_or_ends_early_is_an_error() {
        let Rig { mut far, mut reader, .. } = rig();
        far.write_u32(MAX as u32 + 1).await.unwrap();
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let Rig { mut far, mut reader, .. } = rig();
        far.write_all(&[0, 0, 0, 2, 7]).await.unwrap();
        drop(far);
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_only_announced_takes_nothing() {
        let Rig { mut far, mut reader, budget } = rig();
        let write = async {
            far.write_u32(MAX as u32).await.unwrap();
            far.write_all(&body(40 << 10)).await.unwrap();
            tokio::task::yield_now().await;
            assert_eq!(budget.taken(Use::Frames), 0);
            let mut sent = 40 << 10;
            while sent < 3 << 20 {
                far.write_all(&body(8 << 10)).await.unwrap();
                sent += 8 << 10;
                let taken = budget.taken(Use::Frames);
                assert!(taken <= sent * 4, "{taken} for {sent}");
                assert!(taken + (2 << 10) >= sent || sent <= UNCOUNTED_BYTES, "{taken} for {sent}");
            }
            drop(far);
        };
        let (read, ()) = tokio::join!(reader.next(), write);
        read.unwrap_err();
        drop(reader);
        assert_eq!(budget.taken(Use::Frames), 0, "and nothing afterwards");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_stands_still_is_an_error_however_much_of_it_has_come() {
        for sent in [1, 5, 100 << 10, 30 << 20] {
            let Rig { mut far, mut reader, .. } = rig();
            let write = async {
                let mut bytes = (MAX as u32).to_be_bytes().to_vec();
                bytes.resize(sent, 7);
                far.write_all(&bytes).await.unwrap();
                let begun = Instant::now();
                // A byte now and then changes nothing.
                while far.write_u8(0).await.is_ok() {
                    sleep(Duration::from_secs(3)).await;
                }
                begun.elapsed()
            };
            let read = async {
                let error = reader.next().await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
                drop(reader);
            };
            let (waited, ()) = tokio::join!(write, read);
            assert!((PATIENCE..PATIENCE * 3 / 2).contains(&waited), "{waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_frame_on_a_slow_line_has_its_time() {
        let Rig { mut far, mut reader, .. } = rig();
        let write = async {
            far.write_u32(2 << 20).await.unwrap();
            for _ in 0..32 {
                sleep(Duration::from_millis(1900)).await;
                far.write_all(&body(64 << 10)).await.unwrap();
            }
        };
        let (read, ()) = tokio::join!(reader.next(), write);
        assert_eq!(read.unwrap().unwrap().len(), 2 << 20);
        let silent = tokio::time::timeout(PATIENCE * 100, reader.next());
        assert!(silent.await.is_err(), "between frames it may be silent");
    }
}
