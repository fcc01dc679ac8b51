//! The broker's verbs, and the right that each takes. Whoever adds a verb names its right here, or it cannot be called.

use millrace_model::{ResourceKind, Right, Rights};

macro_rules! verbs {
    ($($kind:ident { $($verb:ident $text:literal [$($right:ident)*];)* })*) => {
        /// What can be done, each with the rights of which one is enough.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verb {
            $($(#[doc = $text] $verb,)*)*
        }

        impl Verb {
            /// All verbs.
            pub const ALL: &[Self] = &[$($(Self::$verb,)*)*];

            /// What it does, after "may".
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$verb => $text,)*)*
                }
            }

            const fn variant(self) -> &'static str {
                match self {
                    $($(Self::$verb => stringify!($verb),)*)*
                }
            }

            /// The kind of thing that it is about.
            #[must_use]
            pub const fn kind(self) -> ResourceKind {
                match self {
                    $($(Self::$verb)|* => ResourceKind::$kind,)*
                }
            }

            /// The rights of which one is enough.
            #[must_use]
            pub const fn rights(self) -> Rights {
                match self {
                    $($(Self::$verb => enough(&[$(Right::$right),*]),)*)*
                }
            }
        }
    };
}

/// Rights of which one is enough; if none is named, any: who has a right to a thing may see it.
const fn enough(rights: &[Right]) -> Rights {
    match rights {
        [] => Rights::of(Right::ALL),
        rights => Rights::of(rights),
    }
}

verbs! {
    Topic {
        SeeTopic "see" [];
        CreateTopic "create" [Deploy];
        ChangeTopic "change" [Deploy];
        DeleteTopic "delete" [Deploy];
        Trim "remove messages of" [Deploy];
        AcceptDamage "accept the damage of" [Administer];
        Produce "send messages to" [Produce];
        CancelDelayed "cancel delayed messages of" [Produce Operate];
        Read "read messages of" [Consume];
        SeeDelayed "see the delayed messages of" [Consume];
        SeeConsumers "see the consumers of" [View];
        KeepPositions "keep positions in" [Consume];
        ResetConsumer "reset a consumer of" [Consume Operate];
        DeleteConsumer "delete a consumer of" [Consume Operate];
    }
    Processor {
        SeeProcessor "see" [];
        ReadLogs "read the log of" [Operate Deploy];
        DeployProcessor "deploy" [Deploy];
        DeleteProcessor "delete" [Deploy];
        RollBackProcessor "roll back" [Operate Deploy];
        PauseProcessor "pause or resume" [Operate Deploy];
        SeeParked "see the parked messages of" [Operate Redrive];
        ActOnParked "act on the parked messages of" [Operate Redrive];
        SeeTrial "see a trial of" [View];
        EndShadow "end the shadow of" [Operate Deploy];
        Replay "replay messages through" [Deploy];
        ReadState "read the state of" [ReadState];
        WriteState "write the state of" [WriteState];
        SeeDeadLetters "see how many dead letters are of" [View];
        ReadDeadLetters "read the dead letters of" [Redrive];
        Redrive "send dead letters again to" [Redrive];
    }
    Module {
        SeeModule "see" [];
        UploadModule "upload" [Deploy];
        ReadModule "download" [View];
        TagModule "tag" [Deploy];
        DeleteModule "delete" [Deploy];
    }
    Schedule {
        SeeSchedule "see" [];
        SetSchedule "set" [Deploy];
        PauseSchedule "pause or resume" [Operate Deploy];
        RunSchedule "run" [Operate Deploy];
        DeleteSchedule "delete" [Deploy];
    }
    Route {
        SeeRoute "see" [];
        ReadRouteLogs "read the log of" [Operate Deploy];
        SetRoute "set" [Deploy];
        RollBackRoute "roll back" [Operate Deploy];
        DeleteRoute "delete" [Deploy];
        CallRoute "call" [Call];
    }
    Secret {
        UseSecret "let a component read" [Deploy];
    }
    Principal {
        SeePrincipal "see" [Administer];
        SetPrincipal "change" [Administer];
        DeletePrincipal "delete" [Administer];
        MakeToken "make a token of" [Administer];
        RevokeToken "revoke a token of" [Administer];
        SetPassword "set the password of" [Administer];
        RemovePassword "remove the password of" [Administer];
    }
    Host {
        SeeHost "see" [View];
        ReadMetrics "read the metrics of" [View];
        ReadAudit "read the audit log of" [Audit];
        KeepAudit "change how long the audit log is kept of" [Administer];
        BackUp "make a backup of" [Administer];
    }
}

impl Verb {
    /// Its name in the audit log, such as `deploy-processor`.
    #[must_use]
    pub fn id(self) -> String {
        let mut id = String::new();
        for letter in self.variant().chars() {
            if letter.is_uppercase() && !id.is_empty() {
                id.push('-');
            }
            id.push(letter.to_ascii_lowercase());
        }
        id
    }

    /// Whether the audit log has each use of it: it changes what exists, what runs, or who may do what. Messages and positions are the
    /// host's normal work.
    #[must_use]
    pub const fn is_administrative(self) -> bool {
        match self {
            Self::CreateTopic
            | Self::ChangeTopic
            | Self::DeleteTopic
            | Self::Trim
            | Self::AcceptDamage
            | Self::CancelDelayed
            | Self::ResetConsumer
            | Self::DeleteConsumer
            | Self::DeployProcessor
            | Self::DeleteProcessor
            | Self::RollBackProcessor
            | Self::PauseProcessor
            | Self::ActOnParked
            | Self::EndShadow
            | Self::Replay
            | Self::WriteState
            | Self::Redrive
            | Self::UploadModule
            | Self::TagModule
            | Self::DeleteModule
            | Self::SetSchedule
            | Self::PauseSchedule
            | Self::RunSchedule
            | Self::DeleteSchedule
            | Self::SetRoute
            | Self::RollBackRoute
            | Self::DeleteRoute
            | Self::SetPrincipal
            | Self::DeletePrincipal
            | Self::MakeToken
            | Self::RevokeToken
            | Self::SetPassword
            | Self::RemovePassword
            | Self::BackUp
            | Self::KeepAudit => true,
            Self::SeeTopic
            | Self::Produce
            | Self::Read
            | Self::SeeDelayed
            | Self::SeeConsumers
            | Self::KeepPositions
            | Self::SeeProcessor
            | Self::ReadLogs
            | Self::SeeParked
            | Self::SeeTrial
            | Self::ReadState
            | Self::SeeDeadLetters
            | Self::ReadDeadLetters
            | Self::SeeModule
            | Self::ReadModule
            | Self::SeeSchedule
            | Self::SeeRoute
            | Self::ReadRouteLogs
            | Self::CallRoute
            | Self::UseSecret
            | Self::SeePrincipal
            | Self::SeeHost
            | Self::ReadMetrics
            | Self::ReadAudit => false,
        }
    }

    /// What it takes to do it with the audit log's topic, which only the host writes; `None` if nobody may.
    pub(crate) const fn on_the_audit_log(self) -> Option<Self> {
        match self {
            Self::SeeTopic
            | Self::Read
            | Self::SeeDelayed
            | Self::SeeConsumers
            | Self::KeepPositions
            | Self::ResetConsumer
            | Self::DeleteConsumer => Some(Self::ReadAudit),
            Self::ChangeTopic => Some(Self::KeepAudit),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::Role;

    use super::*;

    #[test]
    fn an_admin_may_do_everything_and_a_viewer_only_see() {
        for verb in Verb::ALL {
            assert!(Role::Admin.rights().has_any(verb.rights()), "{verb:?}");
            let sees = Role::Viewer.rights().has_any(verb.rights());
            let reads_no_message = matches!(
                verb,
                Verb::SeeTopic
                    | Verb::SeeConsumers
                    | Verb::SeeProcessor
                    | Verb::SeeTrial
                    | Verb::SeeDeadLetters
                    | Verb::SeeModule
                    | Verb::ReadModule
                    | Verb::SeeSchedule
                    | Verb::SeeRoute
                    | Verb::SeeHost
                    | Verb::ReadMetrics
            );
            assert_eq!(sees, reads_no_message, "{verb:?}");
        }
    }

    #[test]
    fn verbs_have_ids_of_their_own() {
        let ids: std::collections::BTreeSet<String> =
            Verb::ALL.iter().map(|verb| verb.id()).collect();
        assert_eq!(ids.len(), Verb::ALL.len());
        assert_eq!(Verb::RollBackProcessor.id(), "roll-back-processor");
    }

    #[test]
    fn who_builds_cannot_give_rights() {
        let verbs = Verb::ALL
            .iter()
            .filter(|verb| verb.kind() == ResourceKind::Principal);
        for verb in verbs {
            for role in Role::ALL.iter().filter(|role| **role != Role::Admin) {
                assert!(!role.rights().has_any(verb.rights()), "{role}: {verb:?}");
            }
        }
    }
}
