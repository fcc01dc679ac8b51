//! A session: the broker's verbs, for one caller. Every verb of every door is called through one.

use crate::catalogue::handle::Catalogue;
use crate::dead_letters::handle::DeadLetters;
use crate::ground::caller::Caller;
use crate::groups::handle::Groups;
use crate::messages::handle::Messages;
use crate::processors::handle::Processors;
use crate::schedules::handle::Schedules;

/// The rooms, open to one caller. Cheap to clone; a door makes one for each request.
#[derive(Clone)]
pub struct Session {
    catalogue: Catalogue,
    messages: Messages,
    consumers: Groups,
    processors: Processors,
    dead_letters: DeadLetters,
    schedules: Schedules,
    caller: Caller,
}

impl Session {
    pub(crate) fn new(
        catalogue: Catalogue,
        messages: Messages,
        consumers: Groups,
        processors: Processors,
        dead_letters: DeadLetters,
        schedules: Schedules,
        caller: Caller,
    ) -> Self {
        Self {
            catalogue,
            messages,
            consumers,
            processors,
            dead_letters,
            schedules,
            caller,
        }
    }

    /// Who calls.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Topics and modules.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Messages in and out, and those that are delayed.
    #[must_use]
    pub fn messages(&self) -> &Messages {
        &self.messages
    }

    /// Named readers, and their positions.
    #[must_use]
    pub fn consumers(&self) -> &Groups {
        &self.consumers
    }

    /// Processors and their revisions, their state, and what they have parked.
    #[must_use]
    pub fn processors(&self) -> &Processors {
        &self.processors
    }

    /// What was given up.
    #[must_use]
    pub fn dead_letters(&self) -> &DeadLetters {
        &self.dead_letters
    }

    /// Messages that are made at set times.
    #[must_use]
    pub fn schedules(&self) -> &Schedules {
        &self.schedules
    }
}
