//! The state of processors, for the component of a route. It sees what is committed. Without WASM it is what a test gave with
//! [`RouteTester::with_view`](crate::testing::RouteTester::with_view); elsewhere every call fails.

use std::fmt;

/// The state of a processor for one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    processor: &'a str,
    topic: Option<&'a str>,
}

/// An entry of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// Entries in ascending order of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether there may be more after the last one.
    pub has_more: bool,
}

/// Why state cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewError {
    /// The route is not granted this processor's state.
    NotGranted(String),
    /// There is no such processor, topic or partition, or the call exceeds a bound.
    Refused(String),
    /// A later call may succeed.
    Unavailable(String),
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(why) | Self::Refused(why) | Self::Unavailable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ViewError {}

impl<'a> View<'a> {
    /// The state of a processor that reads one topic.
    #[must_use]
    pub fn of(processor: &'a str) -> Self {
        Self {
            processor,
            topic: None,
        }
    }

    /// Its state for this topic, if it reads several.
    #[must_use]
    pub fn topic(self, topic: &'a str) -> Self {
        Self {
            topic: Some(topic),
            ..self
        }
    }

    /// The number of partitions.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn partitions(&self) -> Result<u32, ViewError> {
        host::partitions(self)
    }

    /// The value of a key in the partition that messages with this key go to.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, ViewError> {
        let values = host::get(self, None, &[key.as_ref()])?;
        Ok(values.into_iter().next().flatten())
    }

    /// The values of keys, in order; without a partition, each in the partition that messages with
    /// this key go to.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn get_all(
        &self,
        partition: Option<u32>,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, ViewError> {
        host::get(self, partition, keys)
    }

    /// Entries of a partition whose keys begin with `prefix` and come after `after`.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn scan(
        &self,
        partition: u32,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: u32,
    ) -> Result<Entries, ViewError> {
        host::scan(self, partition, prefix, after, max)
    }
}

#[cfg(target_arch = "wasm32")]
mod host {
    use super::{Entries, Entry, View, ViewError};
    use crate::bindings::views;
    use crate::columns::NONE;

    pub(super) fn partitions(view: &View<'_>) -> Result<u32, ViewError> {
        Ok(views::partitions(&of(view))?)
    }

    pub(super) fn get(
        view: &View<'_>,
        partition: Option<u32>,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, ViewError> {
        let (mut data, mut spans) = (Vec::new(), Vec::new());
        for key in keys {
            spans.extend([data.len() as u32, key.len() as u32]);
            data.extend_from_slice(key);
        }
        let found = views::get(&of(view), partition, &data, &spans)?;
        let value = |span: &[u32; 2]| (span[1] != NONE).then(|| bytes(&found.data, *span));
        Ok(found.values.as_chunks().0.iter().map(value).collect())
    }

    pub(super) fn scan(
        view: &View<'_>,
        partition: u32,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: u32,
    ) -> Result<Entries, ViewError> {
        let page = views::scan(&of(view), partition, prefix, after, max)?;
        let (keys, values) = (page.keys.as_chunks().0, page.values.as_chunks().0);
        let entry = |(key, value): (&[u32; 2], &[u32; 2])| Entry {
            key: bytes(&page.data, *key),
            value: bytes(&page.data, *value),
        };
        Ok(Entries {
            entries: keys.iter().zip(values).map(entry).collect(),
            has_more: page.has_more,
        })
    }

    fn bytes(data: &[u8], [start, length]: [u32; 2]) -> Vec<u8> {
        data[start as usize..start as usize + length as usize].to_vec()
    }

    fn of(view: &View<'_>) -> views::View {
        views::View {
            processor: view.processor.to_owned(),
            topic: view.topic.map(str::to_owned),
        }
    }

    impl From<views::ViewError> for ViewError {
        fn from(error: views::ViewError) -> Self {
            match error {
                views::ViewError::NotGranted(why) => Self::NotGranted(why),
                views::ViewError::Refused(why) => Self::Refused(why),
                views::ViewError::Unavailable(why) => Self::Unavailable(why),
            }
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod host {
    use super::{Entries, View, ViewError};
    use crate::testing::route;

    /// The only partition that a test has.
    const PARTITION: u32 = 0;

    fn no_host<T>() -> Result<T, ViewError> {
        let why = "without WASM there is no host that has state";
        Err(ViewError::Unavailable(why.to_owned()))
    }

    pub(super) fn partitions(view: &View<'_>) -> Result<u32, ViewError> {
        let found = route::with_view(view.processor, |_| PARTITION + 1);
        found.unwrap_or_else(no_host)
    }

    pub(super) fn get(
        view: &View<'_>,
        _: Option<u32>,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, ViewError> {
        let found = route::with_view(view.processor, |state| {
            keys.iter().map(|key| state.get(*key).cloned()).collect()
        });
        found.unwrap_or_else(no_host)
    }

    pub(super) fn scan(
        view: &View<'_>,
        partition: u32,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: u32,
    ) -> Result<Entries, ViewError> {
        if partition != PARTITION {
            let why = format!("there is no partition {partition}; a test has only partition 0");
            return Err(ViewError::Refused(why));
        }
        let found = route::with_view(view.processor, |state| {
            route::entries(state, prefix, after, max as usize)
        });
        found.unwrap_or_else(no_host)
    }
}
