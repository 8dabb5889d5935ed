use super::Door;
use ::http::{Request, Response};
use std::sync::Arc;
use tonic::body::Body;
pub(super) async fn call<D, B>(_door: &Arc<Door<D>>, _request: Request<B>) -> Response<Body> {
    super::unsupported("Watch").into_http()
}
