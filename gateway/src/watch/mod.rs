pub(crate) struct Hub<D>(std::sync::Arc<D>);
impl<D> Hub<D> {
    pub(crate) fn new(d: std::sync::Arc<D>) -> Self {
        Hub(d)
    }
}
