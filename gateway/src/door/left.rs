//! Answers that leave without the gRPC library: a handler leaves the body with an empty answer, as the services want one, and it
//! takes the place of the empty one behind them.

use std::sync::Arc;

use ::http::Response;
use parking_lot::Mutex;
use tonic::body::Body;

/// A body that is left with an empty answer, for [`spell_out`].
#[derive(Clone)]
struct Left(Arc<Mutex<Option<Body>>>);

/// Left with an answer whose pieces count already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted;

/// Leaves a body, whose pieces count already, with an empty answer.
pub(super) fn left<T>(body: Body, empty: T) -> tonic::Response<T> {
    let mut response = tonic::Response::new(empty);
    response.extensions_mut().insert(Left(Arc::new(Mutex::new(Some(body)))));
    response
}

/// Puts the body, if one was left, in the place of the empty one.
pub(super) fn spell_out(mut response: Response<Body>) -> Response<Body> {
    let left = response.extensions_mut().remove::<Left>();
    let Some(body) = left.and_then(|left| left.0.lock().take()) else { return response };
    response.extensions_mut().insert(Counted);
    response.map(|_| body)
}
