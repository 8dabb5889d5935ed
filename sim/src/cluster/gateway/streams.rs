//! The watch streams of clients, as a gateway serves them.

use gateway_core::watch::Watchers;
use keyspace::Revision;

use super::Gateway;
use super::feeds::{Inbox, StreamFeeds};
use crate::cluster::env::Env;
use crate::cluster::events::{Event, ToStream, ToWatchers, Told};

/// A stream.
pub(super) struct ClientStream {
    connection: u64,
    group: usize,
    watchers: Watchers<StreamFeeds>,
    /// Responses that the client's connection still takes.
    room: usize,
}

/// Responses on their way to a client that does not read, at most.
const ROOM: usize = 6;

impl ClientStream {
    pub(super) fn connection(&self) -> u64 {
        self.connection
    }
}

impl Gateway {
    pub(super) fn handle_stream(&mut self, env: &mut Env, to: ToStream) {
        let ToStream { stream, connection, what } = to;
        if let ToWatchers::Open { group } = what {
            let feeds = StreamFeeds {
                domain: self.groups[group].domain,
                hub: self.hub.clone(),
                inbox: Inbox::default(),
            };
            let watchers = Watchers::new(feeds);
            self.streams.insert(stream, ClientStream { connection, group, watchers, room: ROOM });
            return;
        }
        let Some(client) = self.streams.get_mut(&stream).filter(|client| client.connection == connection)
        else {
            // A process that ended since has had it.
            env.after(0, Event::StreamTold { stream, connection, told: Told::Broken });
            return;
        };
        match what {
            ToWatchers::Open { .. } => {}
            ToWatchers::Create(create) => client.watchers.create(*create),
            ToWatchers::Cancel(id) => client.watchers.cancel(id),
            ToWatchers::Progress => client.watchers.request_progress(),
            ToWatchers::Read(count) => client.room += count,
            ToWatchers::Close => {
                self.streams.remove(&stream);
            }
        }
    }

    /// Tells clients what there is, as far as they take it.
    pub(super) fn serve_streams(&mut self, env: &mut Env) {
        for (stream, client) in &mut self.streams {
            let (revision, term) = self.groups[client.group].seen;
            client.watchers.handle_revision(Revision(revision), term);
            while client.room > 0 {
                let Some(frame) = client.watchers.next_frame() else { break };
                client.room -= 1;
                let told = Told::Frame(Box::new(frame));
                let connection = client.connection;
                // In order, as over a connection.
                env.after(200_000, Event::StreamTold { stream: *stream, connection, told });
            }
        }
    }

    /// A progress interval has passed.
    pub(super) fn tick_streams(&mut self) {
        for client in self.streams.values_mut() {
            if client.watchers.wants_ticks() {
                client.watchers.handle_tick();
            }
        }
    }
}
