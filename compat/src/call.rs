//! A unary request and its answer, whatever they travel in. gRPC is the one way there is; the JSON gateway will be
//! another [`Front`].

use std::time::Duration;

use api::etcdserverpb as pb;
use api::etcdserverpb::cluster_client::ClusterClient;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::lease_client::LeaseClient;
use api::etcdserverpb::maintenance_client::MaintenanceClient;
use api::etcdserverpb::watch_client::WatchClient;
use api::grpc::health::v1 as health;
use api::grpc::health::v1::health_client::HealthClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// A request that has one answer.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    /// A stream that is closed after its requests; the answers are collected.
    KeepAlive(Vec<pb::LeaseKeepAliveRequest>),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    MemberList(pb::MemberListRequest),
    Status,
    Alarm(pb::AlarmRequest),
    Health(health::HealthCheckRequest),
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    KeepAlive(Vec<pb::LeaseKeepAliveResponse>),
    TimeToLive(pb::LeaseTimeToLiveResponse),
    Leases(pb::LeaseLeasesResponse),
    MemberList(pb::MemberListResponse),
    Status(pb::StatusResponse),
    Alarm(pb::AlarmResponse),
    Health(health::HealthCheckResponse),
}

/// The end could not be reached: not an answer that could be compared.
#[derive(Debug)]
pub(crate) struct Unreachable(pub(crate) String);

/// One end, over gRPC.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    url: String,
    channel: Channel,
}

/// No step of a sequence takes etcd this long.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

impl Front {
    pub(crate) async fn connect(url: &str) -> Result<Self, Unreachable> {
        let unreachable = |error| Unreachable(format!("{url}: {error}"));
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(unreachable)?;
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(unreachable)?;
        Ok(Self { url: url.to_owned(), channel })
    }

    /// Sends `call`. A status is an answer like any other.
    pub(crate) async fn send(&self, call: Call) -> Result<Result<Reply, Status>, Unreachable> {
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, self.send_without_limit(call.clone())).await;
        match sent {
            Ok(Err(status)) if is_transport_error(&status) => {
                Err(Unreachable(format!("{}: {status:?} to {call:?}", self.url)))
            }
            Ok(answer) => Ok(answer),
            Err(_) => Err(Unreachable(format!("{}: no answer in {ANSWER_TIMEOUT:?} to {call:?}", self.url))),
        }
    }

    async fn send_without_limit(&self, call: Call) -> Result<Reply, Status> {
        let channel = self.channel.clone();
        // Our own limits must not hide the server's.
        let kv = || KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let lease = || LeaseClient::new(channel.clone());
        let maintenance = || MaintenanceClient::new(channel.clone());
        Ok(match call {
            Call::Range(request) => Reply::Range(kv().range(request).await?.into_inner()),
            Call::Put(request) => Reply::Put(kv().put(request).await?.into_inner()),
            Call::Delete(request) => Reply::Delete(kv().delete_range(request).await?.into_inner()),
            Call::Txn(request) => Reply::Txn(kv().txn(request).await?.into_inner()),
            Call::Compact(request) => Reply::Compact(kv().compact(request).await?.into_inner()),
            Call::Grant(request) => Reply::Grant(lease().lease_grant(request).await?.into_inner()),
            Call::Revoke(request) => Reply::Revoke(lease().lease_revoke(request).await?.into_inner()),
            Call::KeepAlive(requests) => {
                let mut answers = lease().lease_keep_alive(tokio_stream::iter(requests)).await?.into_inner();
                let mut collected = Vec::new();
                while let Some(answer) = answers.message().await? {
                    collected.push(answer);
                }
                Reply::KeepAlive(collected)
            }
            Call::TimeToLive(request) => {
                Reply::TimeToLive(lease().lease_time_to_live(request).await?.into_inner())
            }
            Call::Leases => {
                Reply::Leases(lease().lease_leases(pb::LeaseLeasesRequest {}).await?.into_inner())
            }
            Call::MemberList(request) => {
                Reply::MemberList(ClusterClient::new(channel).member_list(request).await?.into_inner())
            }
            Call::Status => Reply::Status(maintenance().status(pb::StatusRequest {}).await?.into_inner()),
            Call::Alarm(request) => Reply::Alarm(maintenance().alarm(request).await?.into_inner()),
            Call::Health(request) => {
                Reply::Health(HealthClient::new(channel).check(request).await?.into_inner())
            }
        })
    }

    /// Opens a watch stream.
    pub(crate) async fn watch(&self) -> Result<WatchPipe, Unreachable> {
        let (requests, receiver) = mpsc::channel(64);
        let (sender, responses) = mpsc::unbounded_channel();
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        // The headers of the answer may come only with its first message, so the call itself is not waited for here.
        let task = tokio::spawn(async move {
            let opened = client.watch(Request::new(ReceiverStream::new(receiver))).await;
            let mut stream = match opened {
                Ok(stream) => stream.into_inner(),
                Err(status) => {
                    let _ = sender.send(Err(status));
                    return;
                }
            };
            loop {
                let next = match stream.message().await {
                    Ok(Some(response)) => Ok(response),
                    Ok(None) => return,
                    Err(status) => Err(status),
                };
                let last = next.is_err();
                if sender.send(next).is_err() || last {
                    return;
                }
            }
        });
        Ok(WatchPipe { requests, responses, task })
    }
}

/// Both directions of a watch stream; closed when dropped.
#[derive(Debug)]
pub(crate) struct WatchPipe {
    pub(crate) requests: mpsc::Sender<pb::WatchRequest>,
    pub(crate) responses: mpsc::UnboundedReceiver<Result<pb::WatchResponse, Status>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for WatchPipe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn is_transport_error(status: &Status) -> bool {
    let code = status.code();
    let from_below = std::error::Error::source(status).is_some();
    from_below && matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}
