//! The codes of errors, for programs: stable, and the same for every door. Each has a [`Kind`], a
//! meaning, and a default hint that an error may replace. `docs/errors.md` is generated from this
//! list.

use std::fmt;

use crate::advice::{Advice, Kind};

/// Default number of seconds after which to try again.
const SOON_S: u32 = 1;

macro_rules! codes {
    ($($kind:ident { $($name:ident $text:literal $meaning:literal $remedy:literal;)* })*) => {
        /// What went wrong, for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[doc = $meaning] $name,)*)*
        }

        impl Code {
            /// All codes, by kind.
            pub const ALL: &[Self] = &[$($(Self::$name,)*)*];

            /// The code's kind.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self {
                    $($(Self::$name)|* => Kind::$kind,)*
                }
            }

            /// The code as sent to callers.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$name => $text,)*)*
                }
            }

            /// The code's meaning.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $($(Self::$name => $meaning,)*)*
                }
            }

            /// The default hint.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self {
                    $($(Self::$name => $remedy,)*)*
                }
            }
        }
    };
}

// Each entry: the code, its meaning, and what to do.
codes! {
    Malformed {
        Malformed "malformed"
            "The request cannot be understood."
            "correct the place that the message names";
        BadName "bad-name"
            "This cannot be a name."
            "use letters, digits, '.', '_' and '-'";
        BadTag "bad-tag"
            "This cannot be a module's tag."
            "write name@1.0.0";
        BadRule "bad-rule"
            "This cannot be a rule of access."
            "write it as in `producer on topic:orders-*`: a role or a right, and what it is about";
        BadPassword "bad-password"
            "This cannot be a password."
            "choose 12 to 128 visible ASCII characters, or let the host make one";
        BadIdentity "bad-identity"
            "This cannot be an identity of a principal."
            "write it as in dns:billing.internal, uri:spiffe://prod/billing, email:ops@example.com, cn:billing or uid:1000";
    }
    Unauthenticated {
        CredentialsMissing "credentials-missing"
            "The request says not who sends it, and this host must know."
            "log in with a token: `millrace login`, or send one: `millrace --token-file FILE`; over HTTP in the header Authorization: Bearer TOKEN";
        CredentialsRefused "credentials-refused"
            "The token or the password is not, or no longer, one of this host."
            "ask for a new token: `millrace access token create` makes one";
    }
    Forbidden {
        NotAllowed "not-allowed"
            "The caller has no right to do this."
            "ask for the right that the message names; who may administer principals can give it: `millrace access grant`";
        SignatureMissing "signature-missing"
            "The module has no signature, and this host demands one."
            "sign it with `millrace module sign`, and upload it with its signature: `millrace module push FILE --signature FILE`; over HTTP in the header Millrace-Signature";
        SignatureInvalid "signature-invalid"
            "The signature is not of this module, or not for this tag."
            "sign the very file that is uploaded, and send the signature unchanged";
        SignatureUntrusted "signature-untrusted"
            "The module is signed by a key that this host does not trust."
            "sign it with a trusted key, or name the public key in the host's setting trusted_keys";
    }
    Unknown {
        UnknownTopic "unknown-topic"
            "There is no topic of this name."
            "GET /v1/topics or `millrace topic list` shows the topics that exist";
        UnknownPartition "unknown-partition"
            "The topic has fewer partitions, or was deleted meanwhile."
            "GET /v1/topics/{topic} or `millrace topic show` shows where each partition starts and ends";
        OffsetNotKept "offset-not-kept"
            "The messages at this offset were removed by retention, compaction or a trim."
            "continue at the earliest offset";
        OffsetPastEnd "offset-past-end"
            "Nothing is at this offset yet."
            "continue at the latest offset, or wait";
        UnknownMessage "unknown-message"
            "There is no message at this offset, or it has no value."
            "fetch the message to see which";
        UnknownConsumer "unknown-consumer"
            "The topic has no consumer of this name."
            "GET /v1/consumers or `millrace consumer list` shows the consumers that exist; reading without a lease creates one";
        UnknownModule "unknown-module"
            "There is no module with this digest or tag."
            "GET /v1/modules or `millrace module list` shows the modules that exist";
        UnknownProcessor "unknown-processor"
            "There is no processor of this name."
            "GET /v1/processors or `millrace processor list` shows the processors that exist";
        UnknownRevision "unknown-revision"
            "The processor has no revision with this number, or no longer keeps it."
            "name a revision that is kept";
        UnknownDeadLetter "unknown-dead-letter"
            "The processor has no dead letter at this place."
            "GET /v1/processors/{name}/dead-letters or `millrace dlq list` shows them";
        UnknownDelayedMessage "unknown-delayed-message"
            "The delayed message was delivered or cancelled, or never existed."
            "GET /v1/topics/{topic}/delayed or `millrace delayed list` shows those that are waiting";
        UnknownSchedule "unknown-schedule"
            "There is no schedule of this name."
            "GET /v1/schedules or `millrace schedule list` shows the schedules that exist";
        NoSuchRoute "no-such-route"
            "There is no route with this path."
            "GET /v1/routes or `millrace route list` shows the routes that exist";
        UnknownProducer "unknown-producer"
            "The producer's id was never issued, or what it sent is forgotten."
            "request a new id, and number from 0";
        UnknownPrincipal "unknown-principal"
            "There is no principal of this name."
            "GET /v1/access/principals or `millrace access list` shows the principals that exist";
        UnknownToken "unknown-token"
            "The principal has no token of this name."
            "GET /v1/access/principals/{name} or `millrace access show` shows its tokens";
        UnknownIdentity "unknown-identity"
            "The principal does not have this identity."
            "GET /v1/access/principals/{name} or `millrace access show` shows its identities";
        NoSuchDamage "no-such-damage"
            "No known damage lies within these offsets."
            "GET /v1/damage or `millrace damage list` shows the known damage";
    }
    Conflict {
        Fenced "fenced"
            "Another worker took over the partition during the request; nothing was changed."
            "another worker took over this partition meanwhile; try again";
        ChangedMeanwhile "changed-meanwhile"
            "Somebody else changed it first; nothing was done."
            "read it again, and repeat the request if it is still what you want";
        TokenExists "token-exists"
            "The principal already has a token of this name."
            "choose another name, or rotate the token: `millrace access token rotate`";
        IdentityTaken "identity-taken"
            "Another principal has this identity."
            "take it from the other principal first: `millrace access identity remove`; who may see all principals finds it with `millrace access list`";
        LastAdmin "last-admin"
            "Afterwards nobody could administer principals."
            "give another principal the role admin, and a token or an identity, first";
        OutOfOrderSequence "out-of-order-sequence"
            "A producer's batch is not the next one, or is too old to be known as a repeat."
            "send the batches in order, or number from 0 in a new epoch";
        ProducerFenced "producer-fenced"
            "A newer producer has this id."
            "stop; a newer producer uses this id";
        PartlyRepeated "partly-repeated"
            "Some batches of the call were written earlier, others were not."
            "repeat the call exactly as it was the first time";
        TopicExists "topic-exists"
            "The topic's name is taken."
            "use it as it is, change it (PATCH /v1/topics/{topic}, millrace topic set), delete it first, or choose another name";
        KeysWouldMove "keys-would-move"
            "With more partitions, new messages of a key may go to another partition than the existing ones, and something depends on that."
            "if that is acceptable, repeat the request with \"accept_moved_keys\": true (millrace topic set --accept-moved-keys), preferably when the processors have read everything; or create another topic with that many partitions, and let a processor copy the messages to it";
        InUse "in-use"
            "Something else uses it."
            "delete or change the processors first";
        WayBack "way-back"
            "A rollback would need what is to be deleted."
            "keep it, or delete it anyway with accept_loss=true (`millrace topic delete NAME --accept-loss`): then all of that is lost";
        MessagesWait "messages-wait"
            "Messages in the topic wait for a processor."
            "keep it, or delete it anyway with accept_loss=true (`millrace topic delete NAME --accept-loss`): then all of that is lost";
        TooManyConsumers "too-many-consumers"
            "The topic has the maximum number of consumers."
            "delete one that is not needed";
        ConsumerBusy "consumer-busy"
            "Another reader has the consumer's lease."
            "only one reader may be active: stop the other one, or try again when its lease has ended; to read the topic independently, use another name";
        LeaseLost "lease-lost"
            "The consumer's lease is not the newest one, or has ended."
            "this request committed nothing; read again without a lease to continue at the committed positions";
        PositionBehind "position-behind"
            "A later position is already committed."
            "to read messages again, reset the consumer: POST …/reset or `millrace consumer reset`";
        TagTaken "tag-taken"
            "The tag belongs to another module."
            "a tag cannot be moved to another module; choose the next version";
        VersionNotNewer "version-not-newer"
            "Versions of a module's name may only rise on this host, and this one does not."
            "choose a version above the newest one; to run earlier code again, roll the processor back";
        TooManyTags "too-many-tags"
            "The module has the maximum number of tags."
            "GET /v1/modules lists them; DELETE /v1/modules/{tag}/tags/{tag} or `millrace module untag` takes one back";
        OtherRevision "other-revision"
            "Another revision is current than the one expected; nothing was done."
            "see which revision is current (GET /v1/processors/{name}/history), and repeat the request with its number as expected_revision";
        RolledBackAlready "rolled-back-already"
            "The host has just rolled back by itself; nothing was done."
            "name the revision to go further back";
        NothingToRollBack "nothing-to-roll-back"
            "No earlier revision can run."
            "deploy a revision instead";
        TrialFails "trial-fails"
            "The revision on trial is about to be withdrawn."
            "let it be withdrawn and deploy a better one, or promote it anyway: `millrace processor promote NAME --force`; over HTTP {\"force\": true}";
        TrialNotLoaded "trial-not-loaded"
            "The revision on trial does not run."
            "deploy it again to retry, or end it: `millrace processor rollback`";
        NoTrial "no-trial"
            "No revision is on trial."
            "deploy one first: `millrace processor deploy NAME … --canary PERCENT` or `--shadow`; over HTTP with ?canary=PERCENT or ?shadow=true";
        NotDeployed "not-deployed"
            "The processor was deleted, so nothing would process the messages."
            "deploy it again under this name, then redrive; until then they stay where they are";
        NotAnInput "not-an-input"
            "The processor does not read this topic."
            "deploy a revision that reads the topic, then redrive";
        AlreadySent "already-sent"
            "The dead letter was already sent again, so it cannot be edited."
            "`millrace dlq list` shows the dead letters";
        NoAuditTrail "no-audit-trail"
            "The action could not be recorded, so it was not done."
            "nothing was sent; fix the topic that the message names, then try again";
        TooManySchedules "too-many-schedules"
            "There are as many schedules, or bytes of their messages, as the host keeps."
            "delete one that is not needed";
        TooManyPrincipals "too-many-principals"
            "There are as many principals, rules, tokens or identities as the host keeps."
            "delete one that is not needed";
        TooManyRoutes "too-many-routes"
            "There are as many routes as the host keeps."
            "delete one that is not needed";
        BackupUnderWay "backup-under-way"
            "Another backup of this host is running."
            "wait until it has ended; a host makes one backup at a time";
        OtherDirectory "other-directory"
            "The earlier backup is of another data directory."
            "back up to an empty directory, and keep this backup as long as you need it";
    }
    TooLarge {
        TooLarge "too-large"
            "The request, or a message in it, is over a bound that the message names."
            "send less per request";
    }
    Refused {
        OwnedTopic "owned-topic"
            "The topic belongs to a processor, so this cannot be done with it."
            "produce to another topic";
        KeyMissing "key-missing"
            "A message without a key, for a compacted topic."
            "give every message a key, or turn compaction off";
        ReservedHeader "reserved-header"
            "Only the host writes this header."
            "choose another header name";
        TooFarAway "too-far-away"
            "The time of delivery is too far away."
            "choose an earlier time, or use a schedule for repeated messages";
        TimestampAhead "timestamp-ahead"
            "The message's timestamp is too far ahead."
            "omit the timestamp, or put future times in a header";
        OtherUnit "other-unit"
            "The time seems to be in another unit."
            "use milliseconds since the Unix epoch";
        PartitionerFailed "partitioner-failed"
            "The topic's partitioner cannot be loaded, or failed."
            "name the partition in the request, or fix the topic's partitioner";
        BadProducerName "bad-producer-name"
            "The producer's name is empty or too long."
            "choose another name";
        IdempotencyKeyReused "idempotency-key-reused"
            "The key of the request was used for another one."
            "use a new key for this call; the first call stands";
        StateBound "state-bound"
            "State would be over a bound that the message names."
            "write less";
        PositionPastEnd "position-past-end"
            "The position to commit, or to remove messages up to, is past the partition's end."
            "GET /v1/topics/{topic} or `millrace topic show` shows where each partition starts and ends";
        BadPartitions "bad-partitions"
            "No topic can have that many partitions."
            "use a number within the bound";
        FewerPartitions "fewer-partitions"
            "A topic cannot get fewer partitions."
            "create another topic with fewer, and let a processor copy the messages to it";
        NotDurable "not-durable"
            "The store does not promise that what it acknowledges is on a disk; nothing was stored."
            "run its servers so that they write before they answer, and say so in the host's settings; or use another durability";
        PartitionsFull "partitions-full"
            "The host has as many partitions as it may have."
            "delete topics that are not needed, or start the host with a larger --partitions-max";
        ReservedName "reserved-name"
            "The topic's name is reserved."
            "choose another name";
        BadSetting "bad-setting"
            "A setting of the topic is out of its range."
            "choose a value within this range, or null for no bound";
        WrongInterface "wrong-interface"
            "The module does not export what this use requires."
            "GET /v1/modules or `millrace module list` shows what each module exports";
        DigestMismatch "digest-mismatch"
            "The module's bytes are not those whose digest was given."
            "send them again; nothing was stored";
        NotAComponent "not-a-component"
            "These bytes are not a WebAssembly component."
            "build for the target wasm32-wasip2";
        InvalidComponent "invalid-component"
            "The component is invalid, or over a structural limit."
            "build it for wasm32-wasip2 (WASI 0.2) without what the message names; if the limit is a setting, the host can be given a larger one";
        MissingExport "missing-export"
            "The component exports none of the host's interfaces."
            "export one of the interfaces of wit/";
        UngrantedImport "ungranted-import"
            "The component imports what no component may import on this host."
            "build it without these imports";
        NotGranted "not-granted"
            "The component imports more than its processor is granted."
            "grant it with the command in the message, or build the component without these imports";
        CompileLimit "compile-limit"
            "Compiling the component exceeded its limit."
            "simplify the code, or build it with optimisation; if the message names a setting, it can be raised at the host";
        DoesNotStart "does-not-start"
            "The component does not start within its limits."
            "make it start within the limits that the message names, or raise them: `limits` in the processor's specification, or settings of the host";
        InvalidSpec "invalid-spec"
            "The specification of a processor or a route contradicts itself or a rule."
            "change the specification; nothing was deployed";
        InvalidConfig "invalid-config"
            "A setting of a component has a wrong key, or the settings are over a bound."
            "change the settings; nothing has changed";
        InvalidReplay "invalid-replay"
            "The replay is not possible."
            "change the request; nothing was created";
        InvalidEdit "invalid-edit"
            "The dead letter cannot be edited like this."
            "change the edit; nothing was sent";
        WhichTopic "which-topic"
            "The processor has state for several topics, or not for the topic that was named."
            "name one of them";
        BadCron "bad-cron"
            "This is not a pattern of times."
            "for example \"*/5 * * * *\": every five minutes";
        CannotBackUp "cannot-back-up"
            "The host cannot be backed up while it runs."
            "stop the host and copy its directory, or take a snapshot of the file system";
    }
    Busy {
        // Here and below, one code has two kinds. A caller that fills a bound by sending must slow
        // down; a caller that needs something in use only has to wait. HTTP's documented statuses
        // (429 and 503) distinguish the two; for a program, both mean to try again later.
        Busy "busy"
            "The host is already handling as many of these requests as it accepts at once; nothing was stored."
            "send more slowly; nothing of this request was stored";
        OverQuota "over-quota"
            "The principal is over one of its quotas; nothing was done."
            "send and ask more slowly, or have who may administer principals raise the quota (`millrace access quota`)";
        DelaysFull "delays-full"
            "There is no room for more delayed messages."
            "send more slowly; nothing of this request was stored";
    }
    Unavailable {
        Occupied "busy"
            "What the request needs is in use; nothing was done."
            "try again";
        TooManyConnections "too-many-connections"
            "The host has as many connections as it takes."
            "try again; use fewer connections, or have the host take more with --connections-max";
        ProviderAway "provider-away"
            "The identity provider that signed the JWT has not answered yet, so its keys are not known."
            "try again in a moment; the host's log says why the keys cannot be fetched";
        TooManyWaiting "too-many-waiting"
            "As many fetches as the host takes are waiting for messages."
            "try again in a moment, or without waiting";
        RouteBusy "route-busy"
            "The route is answering as many requests as it may at a time."
            "try again";
        RouteUnavailable "route-unavailable"
            "The component of the route cannot be called on this host now."
            "try again; GET /v1/routes/{path} or `millrace route show` says why";
        StateBusy "state-busy"
            "The stored state cannot be read, or has changed meanwhile."
            "try again";
        DiskFull "disk-full"
            "The host's disk is full; nothing was stored."
            "free space on the host, then try again";
        StoreUnavailable "store-unavailable"
            "The store cannot be reached; nothing was stored."
            "try again";
        InDoubt "in-doubt"
            "The store was lost meanwhile: it is unknown whether the request took effect."
            "check whether it took effect; a call with a key can be repeated with the same key";
        EnginePoisoned "engine-poisoned"
            "The host stores nothing more after an error of its disk."
            "restart the host, then try again";
        Stopping "stopping"
            "The host is stopping; nothing was stored."
            "try again when the host is up";
    }
    Damaged {
        Damaged "damaged"
            "Stored bytes are not those that were written."
            "continue after the damage; GET /v1/damage or `millrace damage list` shows all of it";
        Unreadable "unreadable"
            "A stored batch cannot be decoded."
            "continue at the offset named";
        ModuleDamaged "module-damaged"
            "A module's bytes are not those that were uploaded."
            "POST /v1/modules with the same bytes repairs it";
    }
    Internal {
        Internal "internal"
            "The host failed; the message says where."
            "see the host's log";
        BackupFailed "backup-failed"
            "The backup failed."
            "see the host's log";
    }
}

impl Code {
    /// The advice without details of the error.
    #[must_use]
    pub fn advice(self) -> Advice {
        Advice::of(self)
    }

    /// The advice with another hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<std::borrow::Cow<'static, str>>) -> Advice {
        Advice::of(self).hint(hint)
    }

    /// Seconds after which to try again; `Some` for all kinds that are passing.
    pub(crate) fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::StateBusy => Some(5),
            Self::DiskFull => Some(10),
            Self::EnginePoisoned => Some(30),
            code => code.kind().is_passing().then_some(SOON_S),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_code_has_one_kind_and_only_busy_has_two() {
        let mut kinds: BTreeMap<&str, Vec<Kind>> = BTreeMap::new();
        for code in Code::ALL {
            kinds.entry(code.as_str()).or_default().push(code.kind());
        }
        kinds.retain(|_, kinds| kinds.len() > 1);
        let busy = ("busy", vec![Kind::Busy, Kind::Unavailable]);
        assert_eq!(kinds, BTreeMap::from([busy]));
    }

    #[test]
    fn a_code_is_words_and_hyphens_and_says_what_it_means() {
        for code in Code::ALL {
            let text = code.as_str();
            let is_word =
                |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
            assert!(text.split('-').all(is_word), "{text}");
            assert!(code.meaning().ends_with('.'), "{text}");
            assert!(!code.remedy().is_empty(), "{text}");
        }
    }
}
