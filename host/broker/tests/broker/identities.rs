//! Identities of principals: who has one, what it proves, and when that ends.

use millrace_broker::{Access, Caller, NewToken, Proved, Standing, Unproved};
use millrace_model::bounds::PRINCIPAL_IDENTITIES_MAX;
use millrace_model::{Advised as _, Code, Identity, PrincipalName, Rule, TokenName};

use crate::rig::Rig;
use crate::two_hosts::{beside, until};

fn name(text: &str) -> PrincipalName {
    PrincipalName::parse(text).unwrap()
}

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

fn access(rig: &Rig) -> Access {
    rig.broker.session(Caller::host()).access().clone()
}

/// The principal that these identities prove.
fn who(proved: &Proved) -> &str {
    proved.standing.principal().unwrap().as_str()
}

#[tokio::test]
async fn the_first_identity_that_a_principal_has_proves_it() {
    let rig = Rig::start(1).await;
    let access = access(&rig);
    for (principal, has) in [("billing", "dns:billing.internal"), ("ops", "cn:ops")] {
        let principal = name(principal);
        access
            .set_principal(&principal, rules(&["viewer"]))
            .await
            .unwrap();
        let changed = access
            .add_identity(&principal, identity(has))
            .await
            .unwrap();
        assert_eq!(changed.identities, [identity(has)]);
        let again = access
            .add_identity(&principal, identity(has))
            .await
            .unwrap();
        assert_eq!(again.identities, [identity(has)]);
    }
    let prove = |texts: &[&str]| {
        let all: Vec<Identity> = texts.iter().map(|text| identity(text)).collect();
        access.prove_identity(&all)
    };
    assert_eq!(
        who(&prove(&["uid:7", "cn:ops", "dns:billing.internal"]).unwrap()),
        "ops"
    );
    assert_eq!(who(&prove(&["dns:BILLING.internal"]).unwrap()), "billing");
    let refused = prove(&["uid:7", "cn:Ops"]).unwrap_err();
    assert!(refused.to_string().contains("uid:7, cn:Ops"), "{refused}");
    let advice = refused.advice();
    assert_eq!(advice.code, Code::CredentialsMissing);
    assert!(advice.hint.contains("identity add PRINCIPAL 'uid:7'"));
    assert_eq!(prove(&[]).unwrap_err(), Unproved::NoIdentity(Vec::new()));
}

#[tokio::test]
async fn an_identity_belongs_to_one_principal_and_who_may_not_see_it_does_not_learn_whose() {
    let rig = Rig::start(1).await;
    let host = access(&rig);
    for principal in ["billing", "team-a", "root"] {
        let rules = rules(&["administer on principal:team-*"]);
        host.set_principal(&name(principal), rules).await.unwrap();
    }
    host.add_identity(&name("billing"), identity("cn:billing"))
        .await
        .unwrap();
    let taken = host
        .add_identity(&name("team-a"), identity("cn:billing"))
        .await
        .unwrap_err();
    assert_eq!(taken.advice().code, Code::IdentityTaken);
    assert!(taken.to_string().contains("principal billing"), "{taken}");
    assert!(
        taken
            .advice()
            .hint
            .contains("identity remove billing 'cn:billing'")
    );
    host.add_identity(&name("root"), identity("uid:7"))
        .await
        .unwrap();
    let root = host.prove_identity(&[identity("uid:7")]).unwrap().standing;
    let narrow = rig
        .broker
        .session(Caller::unnamed().standing(root))
        .access()
        .clone();
    let taken = narrow
        .add_identity(&name("team-a"), identity("cn:billing"))
        .await
        .unwrap_err();
    let said = format!("{taken} {}", taken.advice().hint).replace("cn:billing", "");
    assert_eq!(taken.advice().code, Code::NotAllowed);
    assert!(!said.contains("billing"), "{said}");
    let refused = narrow
        .add_identity(&name("billing"), identity("cn:other"))
        .await
        .unwrap_err();
    assert_eq!(refused.advice().code, Code::NotAllowed);
    host.remove_identity(&name("billing"), &identity("cn:billing"))
        .await
        .unwrap();
    host.add_identity(&name("team-a"), identity("cn:billing"))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_an_identity_proved_ends_with_it_and_with_other_rules() {
    let rig = Rig::start(1).await;
    let other = beside(&rig).await;
    let (here, there) = (access(&rig), access(&other));
    let billing = name("billing");
    here.set_principal(&billing, rules(&["viewer"]))
        .await
        .unwrap();
    here.add_identity(&billing, identity("cn:billing"))
        .await
        .unwrap();
    until("the other host knows it", async || {
        there.prove_identity(&[identity("cn:billing")]).is_ok()
    })
    .await;
    let proved = || {
        let prove = |access: &Access| access.prove_identity(&[identity("cn:billing")]).unwrap();
        [prove(&here), prove(&there)]
    };
    let before = proved();
    here.add_identity(&billing, identity("cn:second"))
        .await
        .unwrap();
    assert!(!before[0].ended.is_cancelled(), "it still proves the same");
    here.set_principal(&billing, rules(&["operator"]))
        .await
        .unwrap();
    until("both ended", async || {
        before.iter().all(|proved| proved.ended.is_cancelled())
    })
    .await;
    let before = proved();
    here.remove_identity(&billing, &identity("cn:billing"))
        .await
        .unwrap();
    until("both ended", async || {
        before.iter().all(|proved| proved.ended.is_cancelled())
    })
    .await;
    let gone = here
        .remove_identity(&billing, &identity("cn:billing"))
        .await
        .unwrap_err();
    assert_eq!(gone.advice().code, Code::UnknownIdentity);
    assert!(here.prove_identity(&[identity("cn:second")]).is_ok());
    here.delete_principal(&billing).await.unwrap();
    assert!(here.prove_identity(&[identity("cn:second")]).is_err());
}

#[tokio::test]
async fn a_token_ends_with_other_rules_and_not_with_its_rotation() {
    let rig = Rig::start(1).await;
    let access = access(&rig);
    let ci = name("ci");
    access.set_principal(&ci, rules(&["viewer"])).await.unwrap();
    let token = TokenName::parse("one").unwrap();
    let new = NewToken {
        name: token.clone(),
        scope: None,
        expires_at: None,
    };
    let made = access.make_token(&ci, new).await.unwrap();
    let proved = access.prove(made.text.reveal()).unwrap();
    let hour = std::time::Duration::from_secs(3_600);
    access.rotate_token(&ci, &token, hour).await.unwrap();
    assert!(!proved.ended.is_cancelled());
    access
        .set_principal(&ci, rules(&["operator"]))
        .await
        .unwrap();
    assert!(proved.ended.is_cancelled());
    let Standing::Principal(known) = access.prove(made.text.reveal()).unwrap().standing else {
        panic!("a principal");
    };
    assert_eq!(known.rules, rules(&["operator"]));
}

#[tokio::test]
async fn an_identity_keeps_administration_as_a_token_does() {
    let rig = Rig::start(1).await;
    let access = access(&rig);
    let (admin, root) = (name("admin"), identity("cn:root"));
    assert!(access.first().unwrap().is_some());
    access
        .set_principal(&admin, rules(&["admin"]))
        .await
        .unwrap();
    assert!(access.first().unwrap().is_some(), "nothing proves it yet");
    access.add_identity(&admin, root.clone()).await.unwrap();
    assert!(access.first().unwrap().is_none());
    let last = access.remove_identity(&admin, &root).await.unwrap_err();
    assert_eq!(last.advice().code, Code::LastAdmin);
    let last = access
        .set_principal(&admin, rules(&["viewer"]))
        .await
        .unwrap_err();
    assert_eq!(last.advice().code, Code::LastAdmin);
}

#[tokio::test]
async fn a_principal_has_a_bounded_number_of_identities() {
    let rig = Rig::start(1).await;
    let access = access(&rig);
    let many = name("many");
    let unknown = access
        .add_identity(&many, identity("uid:0"))
        .await
        .unwrap_err();
    assert_eq!(unknown.advice().code, Code::UnknownPrincipal);
    access.set_principal(&many, Vec::new()).await.unwrap();
    for uid in 0..PRINCIPAL_IDENTITIES_MAX as u32 {
        access
            .add_identity(&many, Identity::of_user(uid))
            .await
            .unwrap();
    }
    let refused = access
        .add_identity(&many, identity("cn:one-more"))
        .await
        .unwrap_err();
    assert_eq!(refused.advice().code, Code::TooManyPrincipals);
}
