//! CPUs that are chosen: features, models, what depends on what, and what a vCPU shows of it.

mod hosts;
mod layout;
mod reasons;

use super::features::{Register, Word};
use super::*;
use crate::kvm::{KvmHost, ioctl};

fn feature(name: &str) -> Feature {
    Feature::named(name).unwrap_or_else(|| panic!("no feature {name}"))
}

fn names(features: &[Feature]) -> Vec<&'static str> {
    features.iter().filter_map(|feature| feature.name()).collect()
}

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index, flags: 0, eax, ebx, ecx, edx }
}

/// A host of vendor GenuineIntel with the features of a level, and others.
fn host(level: Level, besides: &[&str]) -> Template {
    let components = [(2, 256, 576), (5, 64, 1088), (6, 512, 1152), (7, 1024, 1664), (9, 8, 2688)];
    let mut cpuid = vec![
        entry(0, 0, [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        entry(0xa, 0, [0x0730_0802, 0, 0, 0]),
        entry(0x8000_0008, 0, [0x3930, 0, 0, 0]),
    ];
    cpuid.extend(components.map(|(component, bytes, at)| entry(0xd, component, [bytes, at, 0, 0])));
    let mut cpu = Template { cpuid, feature_msrs: vec![FeatureMsr { index: 0x10a, value: 0 }] };
    let besides = besides.iter().flat_map(|name| feature(name).with_needs());
    level.model().into_iter().chain(besides).for_each(|feature| cpu.put(feature, true));
    cpu.settle(2);
    cpu
}

fn choose(list: &str, host: &Template) -> Result<Template, CpuError> {
    list.parse::<CpuChoice>().unwrap().cpu(host, 2, 1 << 30)
}

#[test]
fn every_name_is_a_bit_of_its_own() {
    let mut all: Vec<_> = Feature::all_named().collect();
    let count = all.len();
    assert!(count > 250, "{count}");
    all.sort_by_key(|(name, _)| *name);
    all.dedup_by_key(|(name, _)| *name);
    assert_eq!(all.len(), count, "a name occurs twice");
    all.sort_by_key(|(_, feature)| *feature);
    all.dedup_by_key(|(_, feature)| *feature);
    assert_eq!(all.len(), count, "a bit has two names");
    assert!(all.iter().all(|(name, feature)| feature.bit < 32 && feature.name() == Some(*name)));
}

#[test]
fn lists_are_read_and_shown() {
    for (list, shown) in [
        ("host", "host"),
        ("-avx", "host,-avx"),
        ("x86-64-v3, +aes,-avx2", "x86-64-v3,+aes,-avx2"),
        ("+rdcl-no", "host,+rdcl-no"),
    ] {
        assert_eq!(list.parse::<CpuChoice>().unwrap().to_string(), shown);
    }
    assert_eq!("host".parse(), Ok(CpuChoice::default()));
    for (list, says) in [
        ("", "CPU \"\" is not known: write host, x86-64-v1"),
        ("pentium", "CPU \"pentium\" is not known: write host"),
        ("host,avx", "CPU \"avx\" is not known: write host"),
        ("host,+mmx2", "CPU feature \"mmx2\" is not known: vmm cpu --names lists all that are"),
        ("host,-", "CPU feature \"\" is not known"),
        ("host,-rsba", "CPU feature \"rsba\" cannot be taken away: a guest is told"),
        ("-lm", "CPU feature \"lm\" cannot be taken away: no guest can be without lm"),
        ("-pae", "CPU feature \"pae\" cannot be taken away: no guest can be without pae"),
    ] {
        let error = list.parse::<CpuChoice>().unwrap_err().to_string();
        assert!(error.starts_with(says), "{list}: {error}");
    }
}

#[test]
fn what_depends_on_a_feature_goes_with_it() {
    let goes = |name: &str| names(&feature(name).with_dependents());
    assert_eq!(goes("popcnt"), ["popcnt"]);
    for gone in
        ["avx2", "fma", "f16c", "vaes", "vpclmulqdq", "avx512vl", "avx512-fp16", "xsave-avx", "avx-vnni"]
    {
        assert!(goes("avx").contains(&gone), "{gone}: {:?}", goes("avx"));
    }
    for kept in ["xsave", "aes", "sse4.2", "pku"] {
        assert!(!goes("avx").contains(&kept), "{kept}");
    }
    for gone in ["avx", "avx512f", "pku", "xsave-pkru", "xsavec", "xsaves", "amx-tile", "cet-ss", "mpx"] {
        assert!(goes("xsave").contains(&gone), "{gone}");
    }
    assert!(goes("aes").contains(&"vaes") && goes("arch-capabilities").contains(&"rdcl-no"));
    let comes = names(&feature("vaes").with_needs());
    for needed in ["aes", "avx", "xsave", "xsave-avx", "sse4.2", "fxsr"] {
        assert!(comes.contains(&needed), "{needed}: {comes:?}");
    }
}

#[test]
fn what_lacks_what_it_needs_is_useless() {
    let mut cpu = host(Level::V3, &["amx-bf16", "amd-ssbd", "amd-psfd", "rsba"]);
    assert_eq!(Feature::useless(&cpu), []);
    // As KVM lists AMX for a process that may not use it.
    cpu.put(feature("xsave-amx-data"), false);
    assert_eq!(names(&Feature::useless(&cpu)), ["amx-bf16", "amx-tile", "xsave-amx-config", "xfd"]);
    cpu.put(feature("avx"), false);
    cpu.put(feature("amd-ssbd"), false);
    let useless = names(&Feature::useless(&cpu));
    for gone in ["avx2", "fma", "xsave-avx", "amx-tile", "amd-psfd"] {
        assert!(useless.contains(&gone), "{gone}: {useless:?}");
    }
    assert!(!useless.contains(&"xsave") && !useless.contains(&"sse4.2"), "{useless:?}");
}

#[test]
fn models_are_closed_and_each_has_its_level() {
    for level in Level::all() {
        let cpu = host(level, &[]);
        assert_eq!(Level::of(&cpu), Some(level));
        let model = level.model();
        let open: Vec<_> = model.iter().flat_map(|f| f.needs()).filter(|f| !model.contains(f)).collect();
        assert!(open.is_empty(), "{level} lacks {open:?}");
        assert_eq!(Level::named(&level.to_string()), Some(level));
    }
    assert_eq!(Level::of(&Template::default()), None);
}

#[test]
fn a_model_is_the_same_on_every_host_of_its_level() {
    let small = host(Level::V2, &["aes", "spec-ctrl"]);
    let large = host(Level::V4, &["aes", "pku", "invariant-tsc", "arch-capabilities", "rdcl-no"]);
    for list in ["x86-64-v2", "x86-64-v2,+aes", "x86-64-v2,-popcnt,-x2apic"] {
        let (one, other) = (choose(list, &small).unwrap(), choose(list, &large).unwrap());
        assert_eq!(lacking(&one, &other), []);
        assert_eq!(lacking(&other, &one), []);
        assert_eq!(missing_features(&one, &large), [""; 0]);
        assert_eq!(missing_features(&other, &small), [""; 0]);
        assert_eq!((one.physical_bits(), one.linear_bits()), (Some(39), Some(48)));
        assert_eq!(other.performance_counters(), Some(0));
    }
    let wide = "x86-64-v2".parse::<CpuChoice>().unwrap().cpu(&large, 1, (1 << 40) + 1).unwrap();
    assert_eq!(wide.physical_bits(), Some(41), "RAM must have addresses");
}

#[test]
fn what_a_host_lacks_is_all_named() {
    let small = host(Level::V2, &[]);
    let CpuError::Lacks(lacks) = choose("x86-64-v3", &small).unwrap_err() else { panic!() };
    assert_eq!(
        names(&lacks),
        [
            "fma",
            "movbe",
            "xsave",
            "avx",
            "f16c",
            "bmi1",
            "avx2",
            "bmi2",
            "xsave-x87",
            "xsave-sse",
            "xsave-avx",
            "abm"
        ]
    );
    let error = choose("host,+amx-tile,+waitpkg", &small).unwrap_err().to_string();
    for part in ["amx-tile (CPUID 0x7.0 EDX bit 24)", "xsave-amx-data", "waitpkg (CPUID 0x7.0 ECX bit 5)"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(choose("host,+popcnt", &small).unwrap(), small, "what is there already is no change");
}

#[test]
fn register_state_follows_the_features() {
    let large = host(Level::V4, &["pku", "xsavec", "spec-ctrl"]);
    let sizes = |cpu: &Template| {
        let subleaves = cpu.cpuid.iter().filter(|e| e.function == 0xd).map(|e| e.index).collect::<Vec<_>>();
        (cpu.leaf(0xd, 0).map(|e| (e.eax, e.ebx, e.ecx)), subleaves)
    };
    assert_eq!(sizes(&large), (Some((0x2e7, 576, 2696)), vec![0, 1, 2, 5, 6, 7, 9]));
    assert_eq!(large.leaf(0xd, 1).map(|e| (e.eax, e.ebx)), Some((2, 576)));
    let cpu = choose("host,-pku", &large).unwrap();
    assert_eq!(sizes(&cpu), (Some((0xe7, 576, 2688)), vec![0, 1, 2, 5, 6, 7]));
    let cpu = choose("host,-avx512f", &large).unwrap();
    assert_eq!(sizes(&cpu), (Some((0x207, 576, 2696)), vec![0, 1, 2, 9]));
    assert!(cpu.has_named("avx2") && !cpu.has_named("avx512vl"));
    let cpu = choose("host,-avx,-pku", &large).unwrap();
    assert_eq!(sizes(&cpu), (Some((3, 576, 576)), vec![0, 1]));
    let cpu = choose("host,-xsave", &large).unwrap();
    assert_eq!(sizes(&cpu), (None, vec![]));
    assert!(!cpu.has_named("avx") && cpu.has_named("sse4.2"));
}

#[test]
fn subleaves_and_describing_leaves_follow_too() {
    let mut large = host(Level::V3, &["avx-vnni", "psfd", "intel-pt"]);
    large.cpuid.push(entry(0x14, 0, [1, 2, 3, 4]));
    large.settle(2);
    assert_eq!(large.leaf(7, 0).map(|e| e.eax), Some(2));
    let cpu = choose("-psfd", &large).unwrap();
    assert_eq!((cpu.leaf(7, 0).map(|e| e.eax), cpu.leaf(7, 2)), (Some(1), None));
    assert!(cpu.leaf(0x14, 0).is_some());
    let cpu = choose("-psfd,-avx2,-intel-pt", &large).unwrap();
    assert_eq!((cpu.leaf(7, 0).map(|e| e.eax), cpu.leaf(0x14, 0)), (Some(0), None));
}

#[test]
fn msr_bits_are_features_like_others() {
    let host_with = |names: &[&str]| host(Level::V2, names);
    let safe = host_with(&["rdcl-no", "mds-no", "its-no"]);
    let value = |cpu: &Template| cpu.feature_msrs.first().map(|msr| msr.value);
    assert_eq!(value(&safe), Some(1 | 1 << 5 | 1 << 62));
    let error = missing_features(&safe, &host_with(&["rdcl-no", "mds-no"]));
    assert_eq!(error, ["this host's CPU lacks its-no (MSR 0x10a bit 62)"]);
    assert_eq!(value(&choose("-mds-no", &safe).unwrap()), Some(1 | 1 << 62));
    assert_eq!(value(&choose("-arch-capabilities", &safe).unwrap()), None);
    assert_eq!(value(&choose("x86-64-v2", &safe).unwrap()), None);
    assert_eq!(value(&choose("x86-64-v2,+rdcl-no", &safe).unwrap()), Some(1));
    // What is worse there is a reason too, but only for a guest that was told how it is here.
    let flawed = host_with(&["rdcl-no", "mds-no", "its-no", "rsba"]);
    let reasons = missing_features(&safe, &flawed);
    assert_eq!(reasons, ["this host's CPU has rsba (MSR 0x10a bit 2), of which the guest was not told"]);
    assert_eq!(missing_features(&flawed, &safe), [""; 0]);
    assert_eq!(missing_features(&choose("x86-64-v2", &safe).unwrap(), &flawed), [""; 0]);
    assert_eq!(value(&choose("x86-64-v2,+rdcl-no", &flawed).unwrap()), Some(5), "a flaw is no choice");
    assert_eq!(
        value(&choose("+rrsba", &safe).unwrap()),
        Some(1 | 1 << 5 | 1 << 19 | 1 << 62),
        "to be told more is"
    );
}

#[test]
fn an_unnamed_bit_is_placed_and_what_follows_cr4_does_not_count() {
    let mut there = Template::default();
    there.put(Feature { word: Word::Cpuid(1, 0, Register::Ecx), bit: 27 }, true);
    there.put(Feature { word: Word::Cpuid(1, 0, Register::Ecx), bit: 16 }, true);
    // A word of which few bits have names.
    there.put(Feature { word: Word::Cpuid(0x8000_0021, 0, Register::Ecx), bit: 9 }, true);
    there.put(feature("tsa-l1-no"), true);
    let reasons = missing_features(&there, &Template::default());
    assert_eq!(
        reasons,
        [
            "this host's CPU lacks CPUID 0x1.0 ECX bit 16",
            "this host's CPU lacks tsa-l1-no (CPUID 0x80000021.0 ECX bit 2)",
            "this host's CPU lacks CPUID 0x80000021.0 ECX bit 9",
        ]
    );
}

#[test]
fn amd_mirrors_the_first_leaf() {
    let mut amd = host(Level::V2, &[]);
    let first = amd.leaf_mut(0, 0).unwrap();
    (first.ebx, first.edx, first.ecx) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);
    let mirrored = |cpu: &Template| cpu.leaf(0x8000_0001, 0).map(|e| e.edx >> 17 & 1);
    assert_eq!(mirrored(&choose("host", &amd).unwrap()), Some(1));
    assert_eq!(mirrored(&choose("-pse36", &amd).unwrap()), Some(0));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn every_cpu_of_this_host_makes_the_same_offer() {
    let kvm = KvmHost::open().unwrap();
    let here = rustix::thread::sched_getaffinity(None).unwrap();
    let mut offers = Vec::new();
    for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| here.is_set(*cpu)) {
        rustix::thread::sched_setaffinity(None, &scheduling::only(cpu)).unwrap();
        offers.push(offer(&kvm, 2).unwrap());
    }
    assert!(offers.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_is_offered_is_what_is_shown() {
    let kvm = KvmHost::open().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let vcpu = kvm.create_vcpu(&vm, 0).unwrap();
    let offered = offer_by(listed(&kvm).unwrap(), &vcpu, 2).unwrap();
    assert_eq!(more_than(&offered, &vcpu, 2).unwrap(), []);
    assert_eq!(offered, offer(&kvm, 2).unwrap());
}

/// So a host is asked once, whatever guests come.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_is_offered_to_one_vcpu_is_offered_to_many() {
    let kvm = KvmHost::open().unwrap();
    let one = offer(&kvm, 1).unwrap();
    for vcpus in [1, 2, 3, 8, 64] {
        let mut many = one.clone();
        many.settle(vcpus);
        assert_eq!(many, offer(&kvm, vcpus).unwrap(), "{vcpus} vCPUs");
    }
}

/// Takes each feature away that this host can hide: a vCPU does not show it, nor what depends on it.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_is_taken_away_is_not_shown() {
    let kvm = KvmHost::open().unwrap();
    let offer = offer(&kvm, 1).unwrap();
    let always = always_shown(&kvm, &offer).unwrap();
    let mut hidden = 0;
    for gone in Feature::all_of(&offer).filter(|one| !always.contains(one)).filter_map(Feature::name) {
        let Ok(choice) = format!("host,-{gone}").parse::<CpuChoice>() else { continue };
        let cpu = choice.cpu(&offer, 1, 1 << 30).unwrap();
        if feature(gone).with_dependents().iter().any(|one| always.contains(one)) {
            continue;
        }
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = kvm.create_vcpu(&vm, 0).unwrap();
        assert_eq!(more_than(&cpu, &vcpu, 1).unwrap(), [], "without {gone}");
        let shown = vcpu.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
        let cpuid = shown.as_slice().iter().map(CpuidEntry::from).collect();
        let shown = Template { cpuid, feature_msrs: cpu.feature_msrs.clone() };
        assert!(!shown.has(feature(gone)), "{gone} is shown");
        hidden += 1;
    }
    assert!(hidden > 5, "{hidden} features can be hidden here");
}

/// Without the feature its MSRs are not saved, and a host is not asked for them.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_msrs_of_a_feature_go_with_it() {
    let kvm = KvmHost::open().unwrap();
    let offer = offer(&kvm, 1).unwrap();
    let saved = |list: &str| {
        let cpu = list.parse::<CpuChoice>().unwrap().cpu(&offer, 1, 1 << 30).unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = kvm.create_vcpu(&vm, 0).unwrap();
        give(&vcpu, &cpu, 0).unwrap();
        probe_msrs(&kvm, ioctl::borrow(&vcpu), &cpu).unwrap()
    };
    for (index, name) in
        [(0x6e0, "tsc-deadline"), (0x4b56_4d00, "kvmclock2"), (0x4b56_4d03, "kvm-steal-time")]
    {
        if offer.has_named(name) {
            assert!(saved("host").contains(&index), "{index:#x} of {name} is not saved");
            assert!(!saved(&format!("-{name}")).contains(&index), "{index:#x} is saved without {name}");
        }
    }
    let [pat, hyper_v] = [0x277, 0x4000_0000].map(|index| saved("host").contains(&index));
    assert!(pat && !hyper_v);
}

#[test]
fn a_saved_area_names_no_component_that_the_guest_does_not_have() {
    let mut area = vec![0; 4096];
    area[512..520].copy_from_slice(&0x2e7_u64.to_le_bytes());
    xsave::keep(&mut area, user_components(&host(Level::V3, &[])));
    assert_eq!(area[512..520], 7_u64.to_le_bytes());
    xsave::keep(&mut area, user_components(&host(Level::V2, &[])));
    assert_eq!(area[512..520], 3_u64.to_le_bytes());
}

/// KVM's own features that the guest was not given are not there for it, where KVM can see to it.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_cannot_use_what_of_kvm_it_was_not_given() {
    let kvm = KvmHost::open().unwrap();
    let offer = offer(&kvm, 1).unwrap();
    let writes = |list: &str, index: u32| {
        let cpu = list.parse::<CpuChoice>().unwrap().cpu(&offer, 1, 1 << 30).unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = kvm.create_vcpu(&vm, 0).unwrap();
        give(&vcpu, &cpu, 0).unwrap();
        // Not zero: KVM lets the host write that to any MSR that it lists.
        msrs::write(ioctl::borrow(&vcpu), [(index, 0x1000)].into_iter()).is_ok()
    };
    for (index, name) in [(0x4b56_4d00, "kvmclock2"), (0x4b56_4d04, "kvm-pv-eoi")] {
        assert!(writes("host", index), "{index:#x} with {name}");
        assert_eq!(
            writes(&format!("-{name}"), index),
            !kvm.capabilities().enforce_pv,
            "{index:#x} without {name}"
        );
    }
}
