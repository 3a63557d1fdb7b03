//! Where XSAVE keeps its components: the same on every host that a guest comes to.

use super::*;

const FEATURES: [&str; 3] = ["aes", "pku", "amx-tile"];

/// A host whose subleaf of leaf 0xd for one component is changed.
fn with(component: u32, change: impl Fn(&mut CpuidEntry)) -> Template {
    let mut cpu = host(Level::V4, &FEATURES);
    if cpu.leaf(0xd, component).is_none() {
        cpu.cpuid.push(entry(0xd, component, [0; 4]));
    }
    change(cpu.leaf_mut(0xd, component).unwrap());
    cpu
}

/// As AMD has it without AVX-512.
fn pkru_elsewhere() -> Template {
    with(9, |pkru| pkru.ebx = 2432)
}

#[test]
fn a_component_elsewhere_is_a_reason() {
    let usual = host(Level::V4, &FEATURES);
    assert_eq!(missing_features(&usual, &usual), [""; 0]);
    for (here, reasons) in [
        (pkru_elsewhere(), vec!["XSAVE component 9 (pkru) lies at 2688 bytes, here at 2432"]),
        (with(2, |avx| avx.eax = 512), vec!["XSAVE component 2 (avx) has 256 bytes, here 512"]),
        (
            with(7, |upper| (upper.ebx, upper.eax, upper.ecx) = (1600, 2048, 2)),
            vec![
                "XSAVE component 7 (avx512-upper-registers) lies at 1664 bytes, here at 1600",
                "XSAVE component 7 (avx512-upper-registers) has 1024 bytes, here 2048",
                "XSAVE component 7 (avx512-upper-registers) has flags 0x0 (ECX), here 0x2",
            ],
        ),
        // Follows XFD.
        (with(18, |tiles| tiles.ecx = 4), vec![]),
    ] {
        assert_eq!(missing_features(&usual, &here), reasons);
    }
    assert_eq!(
        missing_features(&pkru_elsewhere(), &usual),
        ["XSAVE component 9 (pkru) lies at 2432 bytes, here at 2688"]
    );
}

#[test]
fn a_component_that_the_guest_or_the_host_does_not_have_lies_nowhere() {
    let guest = choose("host,-pku", &host(Level::V4, &FEATURES)).unwrap();
    assert_eq!(missing_features(&guest, &pkru_elsewhere()), [""; 0]);
    // Its absence is said once.
    let reasons = missing_features(&pkru_elsewhere(), &guest);
    assert!(reasons.len() == 2 && reasons.iter().all(|line| line.contains("lacks")), "{reasons:?}");
}

#[test]
fn a_component_without_a_name_counts_too() {
    let [there, here] = [3000, 4000].map(|offset| {
        let mut cpu = with(40, |some| (some.eax, some.ebx) = (64, offset));
        cpu.leaf_mut(0xd, 0).unwrap().edx |= 1 << 8;
        cpu
    });
    assert_eq!(missing_features(&there, &here), ["XSAVE component 40 lies at 3000 bytes, here at 4000"]);
}

#[test]
fn hosts_have_no_component_in_common_that_lies_elsewhere() {
    let described = |cpu: Template| HostCpu::new(cpu, &[]);
    let usual = described(host(Level::V4, &FEATURES));
    let has = |found: &Common, name: &str| found.features.contains(&feature(name));
    let found = common(&[usual.clone(), usual.clone(), described(pkru_elsewhere())]).unwrap();
    assert_eq!(found.level, Level::V4);
    assert!(has(&found, "aes") && has(&found, "amx-tile"));
    for gone in ["pku", "xsave-pkru"] {
        assert!(!has(&found, gone) && !found.cpu.has_named(gone), "{gone}");
    }
    for one in [&usual.cpu, &pkru_elsewhere()] {
        assert_eq!(missing_features(&found.cpu, one), [""; 0], "the guest can go to each");
    }
    let found = common(&[usual.clone(), described(with(6, |upper| upper.ebx = 1216))]).unwrap();
    assert_eq!(found.level, Level::V3, "one of three that AVX-512 needs");
    assert!(has(&found, "avx2") && has(&found, "pku") && !has(&found, "avx512f"));
    assert_eq!(found.cpu.leaf(0xd, 5), None);
    let found = common(&[usual, described(with(2, |avx| avx.ebx = 640))]).unwrap();
    assert_eq!(found.level, Level::V2);
}
