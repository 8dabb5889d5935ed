//! A node that has stepped aside asks all others about itself, until it is known whether its directory is an old copy.
//! [`crate::suspicion`] judges.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tracing::{error, info, warn};

use crate::hello;
use crate::shared::Shared;
use crate::suspicion::{Accuser, Answer, Suspicion, Verdict};
use crate::wire::Purpose;

/// Between two questions, at most.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Without a verdict after so many rounds, a word is said.
const ROUNDS_UNTOLD: u32 = 5;

/// Waits until the node has to step aside, and asks until there is a verdict, over and over until the node stops.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let clear_up = async {
        while !shared.seat.is_revoked() {
            let accuser = shared.seat.stepped_aside().await;
            shared.seat.note_doubt(accuser).await;
            ask_all(&shared, accuser).await;
        }
    };
    tokio::select! {
        () = clear_up => {}
        () = shared.stopping.cancelled() => {}
    }
}

async fn ask_all(shared: &Arc<Shared>, accuser: Accuser) {
    warn!(
        node = shared.id.0,
        accuser = accuser.node.0,
        "another node says that it has heard a later incarnation of this one, or another process of it: this node takes no part \
         until all others are asked"
    );
    let mut suspicion = Suspicion::new(accuser, shared.peers.keys().copied());
    for round in 0_u32.. {
        let answers = join_all(shared.peers.values().map(|peer| async {
            let (_, answer) = hello::call(shared, peer, Purpose::Ask).await.ok()?;
            let confirms = hello::has_heard_another(shared, &answer);
            Some(Answer { process: answer.nonce, confirms })
        }));
        for (peer, answer) in shared.peers.keys().zip(answers.await) {
            suspicion.answered(*peer, answer);
        }
        match suspicion.verdict() {
            Verdict::Open => {}
            Verdict::Proven => return shared.revoke(),
            Verdict::Unfounded => {
                if shared.seat.come_back().await {
                    info!(
                        node = shared.id.0,
                        "no other node has heard another of this one: it takes part again"
                    );
                    return;
                }
            }
        }
        if round == ROUNDS_UNTOLD {
            let confirming: Vec<u32> = suspicion.confirming().map(|node| node.0).collect();
            error!(
                node = shared.id.0,
                ?confirming,
                "whether this data directory is an old copy, or this node runs twice, is not known, and it takes no part. If it \
                 is so, {}",
                journal::EMPTY_IT
            );
        }
        tokio::time::sleep(shared.up_to(ASK_AGAIN_AFTER)).await;
    }
}
