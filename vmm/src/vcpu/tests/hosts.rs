//! Descriptions of hosts, and what several have in common.

use super::*;

fn described(cpu: Template, always: &[&str]) -> HostCpu {
    let always: Vec<_> = always.iter().map(|name| feature(name)).collect();
    let host = HostCpu::new(cpu, &always);
    HostCpu::read(serde_json::to_string(&host).unwrap().as_bytes()).unwrap()
}

#[test]
fn hosts_have_a_level_features_and_a_choice_in_common() {
    let old = described(host(Level::V3, &["aes", "spec-ctrl", "rdcl-no", "pku"]), &[]);
    let new =
        described(host(Level::V4, &["vaes", "spec-ctrl", "ssbd", "rdcl-no", "rsba"]), &["avx512f", "aes"]);
    let both = [old, new];
    let found = common(&both).unwrap();
    assert_eq!(found.level, Level::V3);
    assert_eq!(found.choice.to_string(), "x86-64-v3,+aes,+spec-ctrl,+arch-capabilities,+rdcl-no,+rsba");
    assert_eq!(found.choice.to_string().parse(), Ok(found.choice.clone()), "what is said can be typed");
    let given = both.each_ref().map(|host| found.choice.cpu(&host.cpu, 1, 1 << 30).unwrap());
    assert_eq!(given[0].feature_msrs, given[1].feature_msrs, "both are told of the flaw of one");
    assert_eq!(lacking(&given[0], &given[1]), []);
    assert_eq!(lacking(&given[1], &given[0]), []);
    assert!(found.features.iter().all(|one| both.iter().all(|host| host.cpu.has(*one))));
    assert_eq!(both[1].cannot_hide(&found.cpu), ["avx512f"]);
    assert_eq!(common(&both[..1]).unwrap().level, Level::V3, "one host has all in common with itself");
}

#[test]
fn what_of_a_model_is_not_common_is_taken_away() {
    let mut without = host(Level::V2, &[]);
    for name in ["popcnt", "kvmclock-stable"] {
        without.put(feature(name), false);
    }
    let found = common(&[described(host(Level::V3, &[]), &[]), described(without, &[])]).unwrap();
    assert_eq!(found.level, Level::V1, "popcnt is of the second level");
    let list = found.choice.to_string();
    assert!(list.starts_with("x86-64-v1,-kvmclock-stable,+sse3,") && !list.contains("popcnt"), "{list}");
}

#[test]
fn performance_counters_are_not_for_guests_that_move() {
    let counting = |counters: u32| {
        let mut cpu = host(Level::V3, &["aes", "ds", "dtes64", "xsaves-pt", "perfmon-v2"]);
        cpu.leaf_mut(0x8000_0022, 0).unwrap().ebx = counters;
        cpu.settle(1);
        cpu
    };
    let found = common(&[described(counting(6), &[]), described(counting(6), &[])]).unwrap();
    assert_eq!(found.choice.to_string(), "x86-64-v3,+aes,+xsaves");
    assert_eq!((found.cpu.performance_counters(), found.cpu.leaf(0x8000_0022, 0)), (Some(0), None));
    // Who asks for them gets all of them.
    let cpu = choose("x86-64-v3,+perfmon-v2", &counting(6)).unwrap();
    assert!(cpu.has_named("perfctr-core") && cpu.performance_counters() == Some(6));
    assert_eq!(choose("-perfctr-core", &counting(6)).unwrap().leaf(0x8000_0022, 0), None);
}

#[test]
fn hosts_with_nothing_in_common_and_bad_descriptions_are_told() {
    let intel = host(Level::V2, &[]);
    let mut amd = intel.clone();
    let first = amd.leaf_mut(0, 0).unwrap();
    (first.ebx, first.edx, first.ecx) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);
    let error = common(&[described(intel.clone(), &[]), described(amd, &[])]).unwrap_err().to_string();
    assert!(error.starts_with("hosts of vendors GenuineIntel and AuthenticAMD"), "{error}");
    let wrong = |text: &str| HostCpu::read(text.as_bytes()).unwrap_err();
    assert!(wrong("{}").contains("missing field `format`"), "{}", wrong("{}"));
    assert!(wrong(r#"{"format":2,"always":[],"cpuid":[]}"#).contains("of format 2, this program reads 1"));
    assert!(wrong(r#"{"format":1,"always":[],"cpuid":[]}"#).contains("leaf 0x0"));
}

#[test]
fn what_is_always_shown_must_be_a_feature() {
    let mut host = HostCpu::new(host(Level::V3, &[]), &[feature("avx2")]);
    let read = |host: &HostCpu| HostCpu::read(serde_json::to_string(host).unwrap().as_bytes());
    assert_eq!(read(&host), Ok(host.clone()));
    for (name, shown) in [("mmx9", "mmx9"), ("AVX2", "AVX2"), ("", ""), ("avx2\n", "avx2\\n")] {
        host.always = vec!["avx2".into(), name.into()];
        let says = format!("names a CPU feature in \"always\" that is not known: \"{shown}\" (vmm cpu");
        let error = read(&host).unwrap_err();
        assert!(error.starts_with(&says) && error.lines().count() == 1, "{error}");
    }
}
