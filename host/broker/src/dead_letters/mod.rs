//! Dead letters: listed, tried, edited and redriven, with an audit trail. They are messages of
//! ordinary topics (`<topic>.<processor>.dlq`) whose headers carry the evidence.

pub(crate) mod audit;
pub(crate) mod dry_run;
pub(crate) mod due;
pub(crate) mod edit;
pub(crate) mod filter;
pub(crate) mod handle;
pub(crate) mod letters;
pub(crate) mod listing;
pub(crate) mod record;
pub(crate) mod redrive;
pub(crate) mod shelf;
pub(crate) mod waiting;
