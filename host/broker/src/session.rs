//! A session: the broker's verbs, for one caller. All doors call verbs through sessions.

use std::any::Any;
use std::sync::Arc;

use crate::access::handle::Access;
use crate::audit::log::AuditLog;
use crate::catalogue::handle::Catalogue;
use crate::dead_letters::handle::DeadLetters;
use crate::ground::caller::Caller;
use crate::groups::handle::Groups;
use crate::messages::handle::Messages;
use crate::processors::handle::Processors;
use crate::routes::handle::Routes;
use crate::schedules::handle::Schedules;

/// The rooms whose verbs a session has.
#[derive(Clone)]
pub(crate) struct Rooms {
    pub(crate) access: Access,
    pub(crate) audit: AuditLog,
    pub(crate) catalogue: Catalogue,
    pub(crate) messages: Messages,
    pub(crate) groups: Groups,
    pub(crate) processors: Processors,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) schedules: Schedules,
    pub(crate) routes: Routes,
}

/// The broker's verbs for one caller. Cheap to clone; a door makes one for each request.
#[derive(Clone)]
pub struct Session {
    rooms: Rooms,
    caller: Caller,
    /// Keeps the broker alive, so that its own work and the notifications between rooms continue
    /// while verbs can be called.
    _broker: Arc<dyn Any + Send + Sync>,
}

impl Session {
    pub(crate) fn new(rooms: &Rooms, caller: Caller, broker: Arc<dyn Any + Send + Sync>) -> Self {
        let rooms = Rooms {
            access: rooms.access.called_by(&caller),
            audit: rooms.audit.called_by(&caller),
            catalogue: rooms.catalogue.called_by(&caller),
            messages: rooms.messages.called_by(&caller),
            groups: rooms.groups.called_by(&caller),
            processors: rooms.processors.called_by(&caller),
            dead_letters: rooms.dead_letters.called_by(&caller),
            schedules: rooms.schedules.called_by(&caller),
            routes: rooms.routes.called_by(&caller),
        };
        Self {
            rooms,
            caller,
            _broker: broker,
        }
    }

    /// The caller.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Principals, their rules and tokens.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.rooms.access
    }

    /// The audit log.
    #[must_use]
    pub fn audit(&self) -> &AuditLog {
        &self.rooms.audit
    }

    /// Topics and modules.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.rooms.catalogue
    }

    /// Messages in and out, and delayed messages.
    #[must_use]
    pub fn messages(&self) -> &Messages {
        &self.rooms.messages
    }

    /// Consumers, consumer groups and their positions.
    #[must_use]
    pub fn consumers(&self) -> &Groups {
        &self.rooms.groups
    }

    /// Processors, their revisions and state, and their parked messages.
    #[must_use]
    pub fn processors(&self) -> &Processors {
        &self.rooms.processors
    }

    /// Dead letters.
    #[must_use]
    pub fn dead_letters(&self) -> &DeadLetters {
        &self.rooms.dead_letters
    }

    /// Schedules.
    #[must_use]
    pub fn schedules(&self) -> &Schedules {
        &self.rooms.schedules
    }

    /// Routes.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.rooms.routes
    }
}
